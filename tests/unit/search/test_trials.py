"""The ledger over crashes, and which trials' weights are worth their room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slime_ray.errors import StudyError
from slime_ray.search.course import Wanted, listed
from slime_ray.search.trials import Ledger, Origin, State, Trial, distinct, ledger_file, read_trials, repeats
from slime_ray.search.weights import best_of, first, may_win

FIRST = Trial(0, "recipe", "", {}, {"loss.kappa": 2.5}, run="s/trial-1", also=("paper",))
SECOND = Trial(1, "proposed", "", {"loss.kappa": 3.0}, {"loss.kappa": 3.0}, run="s/trial-2")


def test_a_trial_is_what_its_last_line_says(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ended = replace(FIRST, state="finished", values={"accuracy": 0.5}, curve=((25, 0.75), (50, 0.5)), seconds=1.5)
    for trial in (FIRST, SECOND, ended):
        ledger.record(trial)
    assert ledger.trials() == [ended, SECOND]
    assert read_trials(tmp_path) == [ended, SECOND]
    assert Ledger(tmp_path).next_number() == 2


def test_a_line_of_another_version_is_named(tmp_path: Path) -> None:
    ledger_file(tmp_path).write_text('{"number": 0, "cur\n{"number": 0}\n')
    with pytest.raises(StudyError, match=r"trials\.jsonl:2: 'curve' is not as this version writes trials"):
        read_trials(tmp_path)


def test_a_line_that_a_crash_cut_short_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(FIRST)
    ledger.record(replace(FIRST, state="finished", values={"accuracy": 0.5}))
    content = ledger_file(tmp_path).read_bytes()
    first_line = content.index(b"\n") + 1
    for cut in range(first_line, len(content) - 1):  # without its line break alone, a line says all
        ledger_file(tmp_path).write_bytes(content[:cut])
        again = Ledger(tmp_path)
        assert again.trials() == [FIRST]
        again.record(SECOND)  # on a line of its own
        assert read_trials(tmp_path) == [FIRST, SECOND]


def test_repeats_have_the_same_settings_but_the_seed() -> None:
    again = Trial(2, "seed", "trial 1, seed 1", {"loss.kappa": 3.0, "training.seed": 1}, {})
    of_the_other = Trial(3, "seed", "trial 0, seed 1", {"training.seed": 1}, {})
    trials = [FIRST, SECOND, again, of_the_other]
    assert repeats(trials, SECOND) == [SECOND, again]
    assert repeats(trials, FIRST) == [FIRST, of_the_other]


def test_a_list_of_trials_goes_on_where_it_ended() -> None:
    rows = [Wanted("variant", "a", {}), Wanted("variant", "b", {"loss.kappa": 1.0})]
    following = listed(rows)
    assert following([]) is rows[0]
    assert following([Trial(0, "variant", "a", {}, {}, state="failed")]) is rows[1]
    assert following([Trial(0, "variant", "a", {}, {}), Trial(1, "variant", "b", {}, {})]) is None


def trial(number: int, accuracy: float, logp: float, origin: Origin = "proposed", state: State = "finished") -> Trial:
    values = {"accuracy": accuracy, "chosen_logp": logp} if state == "finished" else {}
    return Trial(number, origin, "", {}, {"x": number}, state=state, values=values)


TRIALS = [
    trial(0, 0.10, -9.0, "recipe"),  # worst by both, but people ask for it
    trial(1, 0.90, -3.0),  # the best by accuracy
    trial(2, 0.90, -4.0),  # second, the later of equals
    trial(3, 0.80, -1.0),  # third, on the front
    trial(4, 0.70, -2.0),  # behind 3 by both
    trial(5, 0.60, -0.5),  # on the front
    trial(6, 0.0, 0.0, state="stopped"),
    trial(7, 0.99, 9.0, "seed"),  # measured, not chosen among
]


@pytest.mark.parametrize(("top", "kept"), [(1, [0, 1, 2, 3, 5]), (3, [0, 1, 2, 3, 4, 5])])
def test_what_may_win_keeps_its_weights(top: int, kept: list[int]) -> None:
    assert [each.number for each in may_win(TRIALS, ["accuracy", "chosen_logp"], top=top)] == kept


def test_the_best_is_by_the_first_objective_and_the_earliest_of_equals() -> None:
    best = best_of(TRIALS, ["accuracy", "chosen_logp"])
    assert best is not None
    assert best.number == 1
    assert best_of([each for each in TRIALS if each.state == "stopped"], ["accuracy"]) is None


def test_of_a_run_the_trial_that_finished_stands_for_it() -> None:
    stopped = replace(trial(3, 0.0, 0.0, state="stopped"), run="s/trial-a")
    again, copy = replace(trial(9, 0.9, -1.0), run="s/trial-a"), replace(trial(13, 0.9, -1.0), run="s/trial-a")
    other, waiting = replace(trial(4, 0.7, -1.0), run="s/trial-b"), trial(5, 0.0, 0.0, state="running")
    trials = [stopped, other, waiting, again, copy]
    assert distinct(trials) == [other, waiting, again]
    assert distinct([stopped, replace(stopped, number=4)]) == [stopped]


def test_copies_take_no_place_among_the_first() -> None:
    best = replace(trial(4, 0.9, -1.0), run="s/trial-a")
    copies = [replace(best, number=number) for number in (9, 13)]
    second, third = replace(trial(5, 0.8, -2.0), run="s/trial-b"), replace(trial(6, 0.7, -3.0), run="s/trial-c")
    trials = [best, second, third, *copies]
    assert first(trials, ["accuracy"], count=3) == [best, second, third]
    assert may_win(trials, ["accuracy"], top=1) == [best, second]
