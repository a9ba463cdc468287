"""A known optimum is found, whatever ends trials, and a study that was killed proposes what it would have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from slime_ray.config.study import StudyRecipe
from slime_ray.overrides import validated
from slime_ray.search.proposals import propose
from slime_ray.search.space import Space
from slime_ray.search.study import wanted
from slime_ray.search.trials import Trial, known_as

RECIPE = {"name": "r", "model": {"name": "m"}, "data": {"train": ["d"]}}
TABLE = {
    "loss": {
        "hard_margin": {"low": 0.5, "high": 3.0},
        "lambda_rejected": {"low": 1e-4, "high": 1.0, "log": True},
        "power": {"choices": [1.0, 2.0, 2.5, 3.0]},
    }
}
Point = Mapping[str, Any]


def study_of(trials: int, *objectives: str, seed: int = 0, **more: Any) -> tuple[StudyRecipe, Space]:
    values = {"recipe": "r", "heldout": "h", "trials": trials, "objectives": objectives, "seed": seed, "space": TABLE}
    study = validated(values | more, StudyRecipe, where="s")
    return study, Space.of(RECIPE, study.space, where="s")


def surface(point: Point) -> float:
    """0 at hard_margin 2.2, lambda_rejected 0.003, power 2.0, and lower everywhere else."""
    orders = math.log10(point["loss.lambda_rejected"] / 0.003)
    return -((point["loss.hard_margin"] - 2.2) ** 2) - 0.3 * orders**2 - 0.5 * (point["loss.power"] != 2.0)


def searched(study: StudyRecipe, space: Space, ends: Callable[[Trial], Trial]) -> list[Trial]:
    """All trials of a study in which training is replaced by a function."""
    following, trials = wanted(study, space), list[Trial]()
    while (next_one := following(trials)) is not None:
        begun = Trial(
            len(trials), next_one.origin, next_one.label, next_one.settings, next_one.point, also=next_one.also
        )
        trials.append(ends(begun))
    return trials


def finished(trial: Trial) -> Trial:
    value = surface(trial.point) if trial.point else -1.0  # a repeat is no point
    return replace(trial, state="finished", values={"accuracy": value})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_optimum_of_a_known_surface_is_found(seed: int) -> None:
    study, space = study_of(60, "accuracy", seed=seed)
    trials = searched(study, space, finished)
    assert len(trials) == 60
    best = max(trials, key=lambda trial: trial.values["accuracy"])
    # 60 draws from the whole space come so close once in a hundred studies.
    assert best.values["accuracy"] > -0.02
    assert best.point["loss.power"] == 2.0
    assert best.point["loss.hard_margin"] == pytest.approx(2.2, abs=0.15)


def test_stopped_and_failed_trials_do_not_lead_astray() -> None:
    random = Random(0)

    def ends(trial: Trial) -> Trial:
        if random.random() < 0.15:
            return replace(trial, state="failed", reason="x")
        if surface(trial.point) < -1.0:  # as halving would
            return replace(trial, state="stopped", curve=((25, surface(trial.point)),))
        return finished(trial)

    study, space = study_of(60, "accuracy")
    trials = searched(study, space, ends)
    assert {trial.state for trial in trials} == {"finished", "stopped", "failed"}
    assert max(trial.values.get("accuracy", -9.0) for trial in trials) > -0.05


def test_of_trials_that_were_stopped_the_last_evaluation_counts() -> None:
    _, space = study_of(40, "accuracy")
    point = {"loss.lambda_rejected": 0.01, "loss.power": 2.0}
    stopped = [
        Trial(number, "proposed", "", {}, {**point, "loss.hard_margin": margin}, state="stopped", curve=((25, margin),))
        for number, margin in enumerate(0.5 + 0.125 * step for step in range(20))
    ]
    asked = [propose(space, stopped, objectives=["accuracy"], seed=seed) for seed in range(20)]
    # Evenly drawn, or from what was tried first, the mean would be 1.75 or less.
    assert sum(each["loss.hard_margin"] for each in asked) / len(asked) > 2.3


def test_of_two_objectives_that_disagree_both_ends_are_searched() -> None:
    def ends(trial: Trial) -> Trial:
        margin = trial.point["loss.hard_margin"]
        return replace(trial, state="finished", values={"accuracy": margin, "chosen_logp": -abs(margin - 1.0)})

    study, space = study_of(40, "accuracy", "chosen_logp")
    later = [trial.point["loss.hard_margin"] for trial in searched(study, space, ends)[15:]]
    # Whatever is below 1.0 is worse by both; draws from the whole range would be there one time in five.
    assert sum(margin < 0.95 for margin in later) <= 2
    assert min(later) < 1.3
    assert max(later) > 2.7


def test_the_same_ledger_has_the_same_next_proposal() -> None:
    study, space = study_of(20, "accuracy")
    trials = searched(study, space, finished)
    for cut in (3, 8, 14, 19):
        assert wanted(study, space)(trials[:cut]) == wanted(study, space)(list(trials[:cut]))
        following = wanted(study, space)(trials[:cut])
        assert following is not None
        assert following.point == trials[cut].point
    other = propose(space, trials, objectives=["accuracy"], seed=1)
    assert other != propose(space, trials, objectives=["accuracy"], seed=0)


def test_trials_that_run_are_kept_away_from() -> None:
    _, space = study_of(40, "accuracy")
    study, _ = study_of(30, "accuracy")
    trials, points = searched(study, space, finished), []
    for _ in range(6):  # six at once
        point = propose(space, trials, objectives=["accuracy"], seed=0)
        points.append(tuple(point.values()))
        trials.append(Trial(len(trials), "proposed", "", space.settings(point), point))
    assert len(set(points)) == 6


def test_proposals_are_inside_and_of_the_right_kind() -> None:
    table = {
        "lora": {"r": {"low": 4, "high": 64, "log": True}},
        "loss": {"soft_gate": {"choices": [True, False]}, "kappa": {"low": 0.123456789, "high": 0.1234568}},
    }
    study = validated({"recipe": "r", "heldout": "h", "space": table}, StudyRecipe, where="s")
    space = Space.of(RECIPE | {"lora": {"r": 8}}, study.space, where="s")
    for seed in range(20):
        point = propose(space, [], objectives=["accuracy"], seed=seed)
        assert type(point["lora.r"]) is int
        assert 4 <= point["lora.r"] <= 64
        assert type(point["loss.soft_gate"]) is bool
        assert 0.123456789 <= point["loss.kappa"] <= 0.1234568


def test_known_points_come_first_and_each_settings_once() -> None:
    study, space = study_of(4, "accuracy")
    trials = searched(study, space, finished)
    # The recipe says nothing of the loss: its own settings are the paper's.
    assert [(trial.origin, trial.also) for trial in trials] == [
        ("recipe", ("paper",)),
        ("authors", ()),
        ("proposed", ()),
        ("proposed", ()),
    ]
    assert known_as(trials, "paper") is trials[0]
    assert trials[1].settings == {"loss.lambda_rejected": 0.0005}


def test_noise_is_measured_once_the_search_is_over() -> None:
    study, space = study_of(5, "accuracy", noise={"seeds": 3})
    following = wanted(study, space)
    trials = searched(study, space, finished)
    best = max(trials[:5], key=lambda trial: trial.values["accuracy"])
    assert best.number != 0
    assert [(trial.origin, trial.label, trial.settings) for trial in trials[5:]] == [
        ("seed", "trial 0, seed 1", {"training.seed": 1}),
        ("seed", "trial 0, seed 2", {"training.seed": 2}),
        ("seed", f"trial {best.number}, seed 1", {**best.settings, "training.seed": 1}),
        ("seed", f"trial {best.number}, seed 2", {**best.settings, "training.seed": 2}),
    ]
    # While one still runs it may yet be the best.
    running = [*trials[:4], replace(trials[4], state="running", values={})]
    assert following(running) is None
    # Repeats are none of the trials that were asked for: with one more of these the search goes on.
    assert following(trials) is None
    longer = wanted(study.model_copy(update={"trials": 6}), space)(trials)
    assert longer is not None
    assert longer.origin == "proposed"
