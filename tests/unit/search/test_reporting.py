"""From a study's folder on disk to its report."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from slime_ray.evaluation.statistics.intervals import Interval
from slime_ray.search.bench import score_file
from slime_ray.search.heldout import FILE, HeldOut
from slime_ray.search.judgment import Judged, Judgment
from slime_ray.search.reporting import report_contrasts, report_study
from slime_ray.search.trials import Ledger, Origin, Trial
from slime_ray.search.variants import Variant
from slime_ray.storage import write_json
from slime_ray.training.scoring import Score
from tests.surfaces import recipe_of, space_of

POINT = {"loss.hard_margin": 1.5, "loss.margin_gap": 0.5, "loss.kappa": 2.5, "loss.lambda_rejected": 0.1,
         "loss.power": 2.5, "training.learning_rate": 5e-4}  # fmt: skip
VARIANTS = [Variant("full SLIME", "", None, {}), Variant("power 1", "power", 1.0, {"loss.power": 1.0})]


@pytest.fixture
def heldout(tmp_path: Path) -> HeldOut:
    """12 pairs of 11 prompts, divided, in the study's folder."""
    file = tmp_path / "heldout.jsonl"
    rows = [{"prompt": f"prompt {max(n, 1)}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    parts = HeldOut.of(str(file))
    parts.write(tmp_path / FILE)
    return parts


def scored(folder: Path, heldout: HeldOut, which: int | str, *, right: set[str], chosen: float) -> None:
    """Write a score: these pairs stand in the right order, and every chosen answer has one log-probability."""
    sources = tuple(sorted([*heldout.selecting, *heldout.reporting]))
    rejected = tuple(chosen - (0.5 if source in right else -0.5) for source in sources)
    write_json(score_file(folder, which), asdict(Score("m", sources, (chosen,) * len(sources), rejected, ())))


def test_a_search(tmp_path: Path, heldout: HeldOut) -> None:
    ledger = Ledger(tmp_path)
    all_right = {*heldout.selecting, *heldout.reporting}
    half = len(heldout.selecting) // 2
    for number, (select, report) in enumerate([(half, 2), (len(heldout.selecting), 1)]):
        right = {*heldout.selecting[:select], *heldout.reporting[:report]}
        scored(tmp_path, heldout, number, right=right, chosen=-0.5)
        settings = {} if number == 0 else {"loss.kappa": 5.0}
        values = {"accuracy": select / len(heldout.selecting), "chosen_logp": 0.25}
        origin: Origin = "recipe" if number == 0 else "proposed"
        ledger.record(Trial(number, origin, "", settings, POINT, "finished", values=values))
    ledger.record(Trial(2, "proposed", "", {"loss.kappa": 9.0}, POINT, "failed", reason="no reason"))
    scored(tmp_path, heldout, "start", right=all_right, chosen=-0.75)

    judged = Judgment("mean grade", 0, "trial-0", tmp_path, (Judged(1, Interval(6.5, None, None, 3), None),))
    found = report_study(
        tmp_path,
        name="mine",
        recipe=recipe_of(),
        objectives=("accuracy", "chosen_logp"),
        space=space_of(),
        judgment=judged,
    )
    assert found.winner is not None
    assert found.winner.trial.number == 1
    assert found.winner.selecting["accuracy"].value == 1.0
    assert found.winner.reporting["accuracy"].value == pytest.approx(1 / len(heldout.reporting))
    assert found.winner.reporting["accuracy"].clusters == len({*heldout.reporting} - {_second(heldout)})
    assert found.winner.reporting["chosen_logp"].value == pytest.approx(0.25)  # gained since the start
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Its preference accuracy: 1" in page
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["accuracy selecting"] for row in rows] == [str(half / len(heldout.selecting)), "1.0", ""]
    assert [row["judged"] for row in rows] == ["", "6.5", ""]
    assert [row["loss.kappa"] for row in rows] == ["2.5", "5.0", "9.0"]


def _second(heldout: HeldOut) -> str:
    """The second pair of the one prompt that has two, which adds no cluster."""
    return f"{heldout.entry}:2"


def test_an_ablation_uses_both_parts(tmp_path: Path, heldout: HeldOut) -> None:
    ledger = Ledger(tmp_path)
    pairs = sorted([*heldout.selecting, *heldout.reporting])
    for number, (variant, right) in enumerate(zip(VARIANTS, (3, 9), strict=True)):
        scored(tmp_path, heldout, number, right=set(pairs[:right]), chosen=-0.5)
        ledger.record(Trial(number, "variant", variant.label, variant.settings, {}, "finished"))
    scored(tmp_path, heldout, "start", right=set(), chosen=-0.75)
    found = report_contrasts(
        tmp_path,
        name="mine",
        recipe=recipe_of(),
        objectives=("accuracy",),
        variants=VARIANTS,
        seeds=1,
        sensitivity=False,
    )
    assert found.rows[1].differences["accuracy"].value == pytest.approx(6 / 12)
    assert (found.pairs, found.prompts) == (12, 11)
    assert found.own["power"] == 2.5
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "above full SLIME: power 1" in page
    assert "+0.500" in page
    assert len((tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()) == 3
