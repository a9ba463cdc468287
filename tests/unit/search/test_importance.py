"""Importance of settings, on a surface of which it is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from slime_ray.search import importance as module
from slime_ray.search.importance import Importance, importance
from slime_ray.search.trials import Trial
from tests.surfaces import space_of, study_of

MATTER = {"training.learning_rate", "loss.lambda_rejected"}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWS", 15)


def found_in(trials: list[Trial]) -> list[Importance]:
    """The importance for right answers."""
    return importance(trials, space_of(), "right")


def exact(count: int) -> list[Trial]:
    """Random points: the value rises with the learning rate and falls with lambda_rejected, nothing else counts."""
    trials = []
    for trial in study_of(count, seeds=1).trials:
        rate, weight = trial.point["training.learning_rate"], trial.point["loss.lambda_rejected"]
        # Each of them by its orders of magnitude, over as much of its range.
        value = math.log(rate) / math.log(20) - math.log(weight) / math.log(3000)
        trials.append(replace(trial, state="finished", values={"right": value}))
    return trials


def test_what_matters_comes_first() -> None:
    found = found_in(exact(60))
    assert {each.setting for each in found[:2]} == MATTER
    assert sum(each.value for each in found) == pytest.approx(1.0)
    assert min(each.value for each in found[:2]) > 2 * max(each.value for each in found[2:])


def test_only_the_order_of_trials_counts() -> None:
    trials = exact(40)
    stretched = [replace(trial, values={"right": 100 * trial.values["right"] ** 3}) for trial in trials]
    assert found_in(stretched) == found_in(trials)


def test_a_stopped_trial_is_below_every_finished_one_and_above_those_stopped_before() -> None:
    trials = exact(40)
    order = sorted(trials, key=lambda trial: trial.values["right"])
    stopped = {}
    for place, trial in enumerate(order[:20]):
        # The last two of them reached more steps, the others differ in the metric.
        curve = ((25, 0.9 + place / 1000), (50, 0.1)) if place >= 18 else ((25, place / 100),)
        stopped[trial.number] = replace(trial, state="stopped", values={}, curve=curve)
    stopped[order[19].number] = replace(stopped[order[19].number], curve=((25, 0.0), (50, 0.2)))
    assert found_in([stopped.get(trial.number, trial) for trial in trials]) == found_in(trials)


def test_failed_trials_and_repeats_say_nothing() -> None:
    trials = exact(30)
    failed = replace(trials[3], number=90, state="failed", values={})
    repeat = replace(trials[4], number=91, origin="seed", point={}, values={"right": 9.0})
    assert found_in([*trials, failed, repeat]) == found_in(trials)


def test_an_interval_holds_the_value_and_narrows_with_trials() -> None:
    few, many = found_in(exact(20)), found_in(exact(80))
    for each in (*few, *many):
        assert 0 <= each.low <= each.value <= each.high <= 1

    def width(found: list[Importance]) -> float:
        return sum(each.high - each.low for each in found if each.setting in MATTER)

    assert width(many) < 0.8 * width(few)


def test_too_few_trials_say_nothing() -> None:
    assert found_in(exact(9)) == []
    assert len(found_in(exact(10))) == 6
