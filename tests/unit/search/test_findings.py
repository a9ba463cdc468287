"""What a study found: the winner on pairs that it was not chosen by, noise, and the sentences about it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_ray.evaluation.statistics.intervals import Interval
from slime_ray.search import findings as module
from slime_ray.search.contrasts import Row, contrast
from slime_ray.search.findings import Evidence, Measured, StudyFindings, find, interval_of, pareto_front
from slime_ray.search.importance import Importance
from slime_ray.search.judgment import Judged, Judgment
from slime_ray.search.report.trials_csv import trials_csv
from slime_ray.search.report.words import OBJECTIVES as OBJECTIVE_TITLES
from slime_ray.search.report.words import care, contrast_paragraph, paragraph
from slime_ray.search.trials import SEED, Origin, Trial
from slime_ray.search.variants import Variant
from tests.surfaces import OBJECTIVES, ablation_of, recipe_of, space_of, study_of

OWN = {"loss.hard_margin": 1.5, "loss.margin_gap": 0.5, "loss.kappa": 2.5, "loss.lambda_rejected": 0.1,
       "loss.power": 2.5, "training.learning_rate": 5e-4}  # fmt: skip
PAIRS = [f"test.jsonl:{line}" for line in range(1, 41)]


def trial_of(number: int, origin: Origin, value: float, **changes: Any) -> Trial:
    """A finished trial with a value on the part that selects."""
    point = {} if origin == "seed" else OWN
    fields: dict[str, Any] = {"label": "", "settings": {"loss.power": float(number)}, "point": point}
    return Trial(number=number, origin=origin, state="finished", values={"accuracy": value}, **(fields | changes))


def right(count: int, *, of: int = 20, start: int = 0) -> dict[str, float]:
    """Accuracy on the pairs of one part: the first so many are right."""
    return {PAIRS[start + place]: float(place < count) for place in range(of)}


def study(
    trials: list[Trial], counts: Mapping[int, tuple[int, int]], judgment: Judgment | None = None
) -> StudyFindings:
    """A study in which each trial has so many of 20 pairs right on the part that selects, and on the other."""
    measured = {
        number: Measured({"accuracy": right(select)}, {"accuracy": right(report, start=20)})
        for number, (select, report) in counts.items()
    }
    prompts = {source: source for source in PAIRS}
    return find(Evidence("s", ("accuracy",), tuple(trials), measured, prompts, judgment), space_of())


SIMPLE = [trial_of(0, "recipe", 0.5, settings={}), trial_of(1, "proposed", 0.8), trial_of(2, "authors", 0.6)]


def test_the_winner_is_chosen_on_one_part_and_reported_on_the_other() -> None:
    # Trial 2 is better on the part that reports: that must choose nothing.
    found = study(SIMPLE, {0: (10, 11), 1: (16, 13), 2: (12, 19)})
    assert found.winner is not None
    assert found.winner.trial.number == 1
    assert (found.winner.selecting["accuracy"].value, found.winner.reporting["accuracy"].value) == (0.8, 0.65)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.2, 1.0, "+0.600 (+0.200 to +1.000) over trial 0."),
        (-0.2, 1.4, "+0.600 (−0.200 to +1.400) over trial 0, within noise."),
        (None, None, "+0.600 over trial 0, with too few questions for an interval."),
    ],
)
def test_the_judges_score_goes_before_the_first_objective(low: float | None, high: float | None, said: str) -> None:
    scores = (Judged(2, Interval(6.5, 6.0, 7.0, 80), Interval(0.6, low, high, 80)),
              Judged(1, Interval(6.2, 5.8, 6.6, 80), Interval(0.3, -0.1, 0.7, 80)),
              Judged(0, Interval(5.9, 5.5, 6.3, 80), None))  # fmt: skip
    judgment = Judgment("mean grade, 1 to 10", 0, "trial-0", Path("report.html"), scores)
    found = study(SIMPLE, {0: (10, 11), 1: (16, 13), 2: (12, 9)}, judgment)
    # The rest stand in the order of the first objective.
    assert [each.trial.number for each in found.standings] == [2, 1, 0]
    first = "Trial 2 has the highest score of 3 judged (mean grade, 1 to 10): 6.500 (6.000 to 7.000), "
    assert paragraph(found)[0] == first + said
    assert paragraph(found)[1].startswith("Its preference accuracy: 0.600 (")
    assert found.flattery is not None
    assert found.flattery.value == pytest.approx(2 / 20 - -2 / 20)  # the judged winner's lead, not trial 1's


def test_flattery_is_relative_to_the_recipes_own_settings() -> None:
    found = study(SIMPLE, {0: (10, 6), 1: (16, 8), 2: (12, 8)})
    # Leads of 6 and of 2 of 20: the part that reports is the harder one for both, which is no flattery.
    assert found.flattery is not None
    assert found.flattery.value == pytest.approx(6 / 20 - 2 / 20)
    # Six differences of 1 among 20, and two: variances of their means on 19 degrees each.
    assert found.flattery.error**2 == pytest.approx((0.3 * 0.7 + 0.1 * 0.9) / 19)


def test_who_wins_with_the_recipes_own_settings_was_not_flattered() -> None:
    trials = [replace(SIMPLE[0], values={"accuracy": 0.9}), *SIMPLE[1:]]
    found = study(trials, {0: (18, 11), 1: (16, 13), 2: (12, 10)})
    assert found.flattery is None
    assert [rival.whose for rival in found.rivals] == ["authors"]
    assert "It has the recipe's own settings: the search found none that do better." in paragraph(found)


def test_repeats_neither_win_nor_are_on_the_front() -> None:
    lucky = trial_of(3, "seed", 1.0, settings={"loss.power": 1.0, SEED: 1}, label="trial 1, seed 1")
    found = study([*SIMPLE, lucky], {0: (10, 11), 1: (16, 13), 2: (12, 10), 3: (20, 20)})
    assert found.winner is not None
    assert found.winner.trial.number == 1
    assert not found.standings[-1].front


def test_the_best_settings_are_compared_by_their_other_seeds() -> None:
    seeds = [
        trial_of(3, "seed", 0.5, settings={"loss.power": 1.0, SEED: 1}),
        trial_of(4, "seed", 0.5, settings={"loss.power": 1.0, SEED: 2}),
        trial_of(5, "seed", 0.5, settings={SEED: 1}),
    ]
    found = study([*SIMPLE, *seeds], {0: (10, 10), 1: (16, 18), 2: (12, 10), 3: (9, 11), 4: (9, 13), 5: (9, 12)})
    # The winner's own 18 of 20 are left out: 11 and 13 against 10 and 12.
    own = found.rivals[0]
    assert (own.whose, own.difference.value) == ("recipe", pytest.approx((12 - 11) / 20))
    assert found.fresh == 2
    # 18, 11, 13 and 10, 12 of 20: squares 26 and 2 on 2 + 1 degrees, in shares.
    assert found.noise is not None
    assert found.noise.variance == pytest.approx((26 + 2) / 3 / 400)
    assert own.difference.undecided
    assert any("within noise of the best" in each for each in paragraph(found))


def test_settings_that_were_proposed_again_are_no_more_evidence() -> None:
    seeds = [
        trial_of(3, "seed", 0.5, settings={"loss.power": 1.0, SEED: 1}),
        trial_of(4, "seed", 0.5, settings={SEED: 1}),
    ]
    trials = [replace(trial, run=f"s/{trial.number}") for trial in [*SIMPLE, *seeds]]
    counts = {0: (10, 10), 1: (16, 18), 2: (12, 10), 3: (9, 11), 4: (9, 12)}
    once = study(trials, counts)
    copies = [replace(trials[1], number=number) for number in (5, 6)]
    again = study([*trials, *copies], {**counts, 5: (16, 18), 6: (16, 18)})
    assert again.noise == once.noise
    assert again.rivals == once.rivals
    assert [each.trial.number for each in again.standings if each.front] == [1]
    assert len(again.standings) == len(once.standings) + 2  # all are in the table


def test_no_setting_is_called_important_where_all_trials_are_equal() -> None:
    equal = tuple(
        Importance(setting, 1 / 3, 1 / 3, 1 / 3) for setting in ("loss.kappa", "loss.power", "loss.hard_margin")
    )
    found = replace(study(SIMPLE, {0: (10, 10), 1: (16, 13), 2: (12, 10)}), importance=equal)
    assert any("the trials cannot tell it from power and hard_margin" in each for each in paragraph(found))


def test_a_rival_that_is_clearly_worse_is_called_that() -> None:
    said = paragraph(study(SIMPLE, {0: (10, 2), 1: (16, 18), 2: (12, 17)}))
    assert any(each.startswith("The recipe's own settings are worse than the best by more than noise") for each in said)
    assert any(each.startswith("The settings of the authors' code are within noise") for each in said)
    assert any("chance in training is in none of these intervals" in each for each in said)


def test_settings_of_several_people_are_one_rival() -> None:
    trials = [replace(SIMPLE[0], also=("paper",)), *SIMPLE[1:]]
    found = study(trials, {0: (10, 10), 1: (16, 13), 2: (12, 10)})
    assert [rival.trial.number for rival in found.rivals] == [0, 2]
    assert any(each.startswith("The recipe's own settings and the paper's settings are") for each in paragraph(found))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1), (2, 2), (3, 0)], {1, 2}),
        ([(1, 1), (1, 1), (0, 1)], {0, 1}),  # equals do not beat each other
        ([(1, 0), (0, 1), (0.5, 0.5)], {0, 1, 2}),
    ],
)
def test_the_pareto_front(points: list[tuple[float, float]], front: set[int]) -> None:
    trials = [replace(SIMPLE[1], number=n, values={"a": a, "b": b}) for n, (a, b) in enumerate(points)]
    assert pareto_front(trials, ("a", "b")) == front


def test_nothing_finished() -> None:
    failed = replace(SIMPLE[0], state="failed", values={}, reason="the disk is full")
    found = study([failed], {})
    assert found.winner is None
    assert paragraph(found) == [
        "No trial finished, so nothing was found.",
        "1 trial failed; the first: the disk is full.",
    ]


def test_an_objective_that_is_no_share_has_the_interval_of_a_mean() -> None:
    values = {source: -0.5 - 0.01 * place for place, source in enumerate(PAIRS)}
    found = interval_of("chosen_logp", values, {source: source for source in PAIRS})
    assert found.value == pytest.approx(-0.5 - 0.01 * 19.5)
    assert found.low is not None
    assert -0.75 < found.low < found.value


def test_sentences_of_a_whole_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "importance", lambda *_: ())
    found = find(study_of(), space_of())
    said = paragraph(found)
    best = max((t for t in found.evidence.trials if t.point and t.values), key=lambda t: t.values[OBJECTIVES[0]])
    assert said[0].startswith(
        f"Trial {best.number} is best in checked answers (sampled): {best.values[OBJECTIVES[0]]:.3f} ("
    )
    stopped = len(found.in_state("stopped"))
    assert (
        f"{stopped} of {len(found.evidence.trials)} trials {'was' if stopped == 1 else 'were'} stopped early." in said
    )
    assert said[-1] == "1 trial failed; the first: the loss was not finite at step 31."


# --- Ablations.

ROWS = [
    Variant("full SLIME", "", None, {}),
    Variant("power 1", "power", 1.0, {"loss.power": 1.0}),
    Variant("power 2.5", "power", 2.5, {}),
    Variant("dpo", "objective", None, {"loss": {"kind": "dpo"}}),
]


def contrasted(counts: Mapping[tuple[str, int | None], int]) -> dict[str, Row]:
    """Rows whose trials, by label and seed, have so many of 20 pairs right."""
    settings = {row.label: row.settings for row in ROWS}
    trials, measured = [], {}
    for number, ((label, seed), count) in enumerate(counts.items()):
        own = {**settings[label], **({SEED: seed} if seed is not None else {})}
        trials.append(Trial(number, "variant", label, own, {}, "finished" if count >= 0 else "failed"))
        if count >= 0:
            measured[number] = {"accuracy": right(count)}
    rows = contrast(ROWS, trials, measured, {source: source for source in PAIRS}, ["accuracy"])
    return {row.variant.label: row for row in rows}


def test_rows_are_paired_with_the_recipe_by_seed() -> None:
    rows = contrasted({("full SLIME", None): 10, ("full SLIME", 1): 14, ("power 1", None): 6, ("power 1", 1): -1,
                       ("dpo", 1): 14})  # fmt: skip
    # Seed 1 of `power 1` failed: only the recipe's own seed is compared, 6 with 10; `dpo` has only seed 1, 14 with 14.
    assert rows["power 1"].differences["accuracy"].value == pytest.approx(-4 / 20)
    assert rows["power 1"].differences["accuracy"].seeds == 1
    assert rows["dpo"].differences["accuracy"].value == 0.0
    assert rows["full SLIME"].mean("accuracy") == pytest.approx(12 / 20)
    assert rows["full SLIME"].spread("accuracy") == pytest.approx((8 / 400) ** 0.5)


def test_a_row_that_is_the_recipe_has_its_trials_and_no_difference() -> None:
    rows = contrasted({("full SLIME", None): 10, ("power 1", None): 10, ("dpo", None): 18})
    assert rows["power 2.5"].same
    assert rows["power 2.5"].means == rows["full SLIME"].means
    assert rows["power 2.5"].differences == {}


def test_holm_is_over_the_rows_that_were_compared() -> None:
    rows = contrasted({("full SLIME", None): 10, ("power 1", None): 14, ("dpo", None): 17})
    p = {label: row.differences["accuracy"].p for label, row in rows.items() if row.differences}
    # Two comparisons: the smaller p doubled, then the larger one by itself but not below.
    assert p["dpo"] is not None
    assert p["power 1"] is not None
    assert rows["dpo"].p_holm["accuracy"] == pytest.approx(2 * p["dpo"])
    assert rows["power 1"].p_holm["accuracy"] == pytest.approx(max(p["power 1"], 2 * p["dpo"]))
    assert rows["power 2.5"].p_holm == {}


def test_sentences_of_an_ablation_count_what_is_undecided() -> None:
    found = ablation_of(seeds=3)
    said = contrast_paragraph(found)
    for name, title in (("checked_sampled", "Checked answers"), ("accuracy", "Preference accuracy")):
        compared = [row for row in found.rows if row.differences]
        undecided = [row for row in compared if row.differences[name].undecided]
        sentence = next(each for each in said if each.startswith(title))
        assert sentence.endswith(f" {len(undecided)} of {len(compared)} rows are undecided.")
        above, _, below = sentence.partition("below full SLIME: ")
        for row in compared:
            label, difference = row.variant.label, row.differences[name]
            named = {
                side: re.search(rf"(: |, | and ){label}(, | and |;|\.)", f": {text}")
                for side, text in (("above", above.partition("above full SLIME: ")[2]), ("below", below))
            }
            assert bool(named["above"]) == (not difference.undecided and difference.value > 0)
            assert bool(named["below"]) == (not difference.undecided and difference.value < 0)


def test_what_a_correction_leaves_undecided_is_said() -> None:
    found = ablation_of(seeds=3)
    said = contrast_paragraph(found)
    for name in found.objectives:
        decided = [row for row in found.rows if row.differences and not row.differences[name].undecided]
        infirm = [row.variant.label for row in decided if row.p_holm[name] >= 0.05]
        place = next(n for n, each in enumerate(said) if each.lower().startswith(OBJECTIVE_TITLES[name]))
        following = said[place + 1] if place + 1 < len(said) else ""
        assert following.startswith("Corrected for ") == bool(infirm)
        assert all(label in following for label in infirm)


def test_a_setting_to_care_about_is_one_that_changes_something_after_correction() -> None:
    found = ablation_of(seeds=5, alone=True)
    for group, row in care(found, "checked_sampled"):
        firm = [each for each in found.of_group(group) if each.p_holm["checked_sampled"] < 0.05]
        assert (row is None) == (not firm)
        if row is not None:
            size = max(abs(each.differences["checked_sampled"].value) for each in firm)
            assert abs(row.differences["checked_sampled"].value) == size


def test_the_csv_has_every_trial_with_all_settings() -> None:
    trials = [
        *SIMPLE,
        Trial(
            3,
            "variant",
            "dpo",
            {"loss": {"kind": "dpo"}},
            {},
            "failed",
            reason='a "bad", bad\nthing',
            curve=((25, 0.5),),
        ),
    ]
    rows = list(csv.DictReader(io.StringIO(trials_csv(trials, recipe_of(), {1: {"accuracy selecting": 0.8}}))))
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    # The recipe's own value where a trial changes nothing, none where it has another objective.
    assert [row["loss.power"] for row in rows] == ["2.5", "1.0", "2.0", ""]
    assert [row["accuracy selecting"] for row in rows] == ["", "0.8", "", ""]
    assert (rows[3]["loss"], rows[3]["reason"]) == ('{"kind": "dpo"}', 'a "bad", bad\nthing')
    assert rows[3]["last_evaluation"] == "25"
