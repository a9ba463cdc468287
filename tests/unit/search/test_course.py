"""What becomes of trials, as their processes and Ray Tune tell it; nothing is trained here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from slime_ray.errors import ClusterError, Interrupted, StorageError, StudyError
from slime_ray.lease import Lease, acquire
from slime_ray.search.bench import Bench
from slime_ray.search.course import Course, Wanted, listed
from slime_ray.search.heldout import HeldOut
from slime_ray.search.loading import load
from slime_ray.search.shown import Shown
from slime_ray.search.trial import carry_out
from slime_ray.search.trials import Ledger, Trial
from slime_ray.search.tuning import _Halted, _scheduler
from slime_ray.search.weights import Weights
from tests.studies import SPACE, WriteStudy

HALVING = SPACE + "\n[stopping]\nfirst = 1\nfactor = 2\n"
METRIC = "eval_rewards/accuracies"
FIRST, SECOND = Wanted("recipe", "", {}, {"x": 1}), Wanted("proposed", "", {"loss.kappa": 1.0}, {"x": 2})


@pytest.fixture
def bench(write_study: WriteStudy) -> Bench:
    study, recipe = load(write_study(tables=HALVING), [])
    return Bench.of(
        study.name,
        recipe,
        studies_dir=study.studies_dir,
        heldout=study.heldout,
        objectives=("accuracy",),
        max_new_tokens=8,
        stopping=study.stopping,
    )


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    with acquire(tmp_path / "lease", what="it", wait=False, say=print) as lease:
        yield lease


def course_of(bench: Bench, lease: Lease, wanted: Sequence[Wanted]) -> Course:
    weights = Weights(bench.name, bench.stage.run.runs_dir, bench.objectives, top=1)
    bench.folder.mkdir(parents=True, exist_ok=True)
    scratch = bench.folder / ".scratch"
    return Course(bench, Ledger(bench.folder), listed(wanted), lease, weights, Shown(), scratch)


def begin(course: Course) -> Trial:
    begun = course.next()
    assert begun is not None
    course.started(begun[0].number)
    return begun[0]


def write_scores(course: Course, number: int, *, right: int) -> None:
    """Scores in which so many of the selecting pairs are ranked right, and none of the others."""
    sources = [*course.bench.heldout.selecting, *course.bench.heldout.reporting]
    chosen = [-1.0 if place < right else -3.0 for place in range(len(sources))]
    score = {"model": "m", "sources": sources, "chosen": chosen, "rejected": [-2.0] * len(sources), "answers": []}
    for which in (number, "start"):
        path = course.bench.score_file(which)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(score))


def test_a_finished_trial_is_measured_on_the_selecting_part(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST])
    trial = begin(course)
    assert trial.run is not None
    assert trial.run.startswith("study/trial-")
    write_scores(course, trial.number, right=3)
    course.ended(trial.number, "finished", "")
    ended = course.ledger[trial.number]
    assert ended.state == "finished"
    assert ended.values == {"accuracy": 3 / len(bench.heldout.selecting)}
    assert course.next() is None


def test_a_users_mistake_is_not_tried_again_and_a_stop_is(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    mistaken, stopped = begin(course), begin(course)
    course.ended(mistaken.number, "failed", "a sentence")
    course.ended(stopped.number, "interrupted", "asked to")
    assert course.ledger[mistaken.number].reason == "a sentence"
    later = course_of(bench, lease, [FIRST, SECOND])
    again = begin(later)
    assert (again.number, again.attempts, again.run) == (stopped.number, 2, stopped.run)
    assert later.next() is None


def test_a_full_disk_halts_all_and_costs_no_trial(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    trial = begin(course)
    course.ended(trial.number, "disk", "no space")
    assert isinstance(course.halted, StorageError)
    assert "trial 0: no space" in str(course.halted)
    assert lease.wish == "stop"
    assert course.next() is None
    assert course.ledger[trial.number].state == "running"


def test_settings_that_were_tried_are_not_trained_again(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST, Wanted("variant", "the same", {}), SECOND])
    first = begin(course)
    write_scores(course, first.number, right=2)
    course.ended(first.number, "finished", "")
    third = begin(course)
    assert third.settings == SECOND.settings
    same = course.ledger[1]
    assert (same.state, same.run, same.values) == ("finished", first.run, course.ledger[0].values)
    assert bench.score_file(1).read_bytes() == bench.score_file(0).read_bytes()


def test_settings_that_make_no_recipe_fail_alone(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [Wanted("proposed", "wrong", {"loss.power": 0.5}), FIRST])
    assert begin(course).origin == "recipe"
    assert course.ledger[0].state == "failed"
    assert "loss.power = 0.5; expected greater than or equal to 1" in course.ledger[0].reason


def test_data_that_is_gone_halts_all_and_costs_no_trial(
    bench: Bench, lease: Lease, preference_file: Path, tmp_path: Path
) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    begin(course)
    away = preference_file.rename(tmp_path / "away.jsonl")
    try:
        assert course.next() is None
        assert str(preference_file) in str(course.halted)
        assert [trial.state for trial in course.ledger.trials()] == ["running"]
    finally:
        away.rename(preference_file)


def test_data_that_changed_halts_all(bench: Bench, lease: Lease, preference_file: Path) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    begin(course)
    before = preference_file.read_text()
    try:
        preference_file.write_text(before.replace("yes", "well", 1))
        assert course.next() is None
        assert str(course.halted) == "study: the recipe's data changed while the study ran; put it back"
    finally:
        preference_file.write_text(before)


def test_workers_without_a_place_halt_all_and_cost_no_trial(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST])
    trial = begin(course)
    course.lost(trial.number, ClusterError("no room"))
    assert str(course.halted) == "no room"
    assert course.ledger[trial.number].state == "running"


def test_what_ray_wraps_is_told_as_it_was_raised(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST])
    trial = begin(course)
    course.lost(
        trial.number, RayTaskError("carry_out", "Traceback\n  somewhere", ClusterError("no room")).as_instanceof_cause()
    )
    assert str(course.halted) == "no room"
    assert course.ledger[trial.number].state == "running"


def test_a_stop_that_cannot_be_written_halts_all(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [SECOND, Wanted("proposed", "b", {"loss.kappa": 2.0})])
    scheduler = _scheduler(course)
    course.scratch.write_text("a file where a folder should be")
    controller: Any = None
    for value in (0.4, 0.2):
        trial = SimpleNamespace(trial_id=str(value), config={"number": begin(course).number})
        scheduler.on_trial_add(controller, trial)  # pyright: ignore[reportArgumentType]
        result = {"step": 1, METRIC: value}
        assert scheduler.on_trial_result(controller, trial, result) == "CONTINUE"  # pyright: ignore[reportArgumentType]
    assert isinstance(course.halted, StorageError)
    assert "a file is in the way of a folder; set studies_dir to" in str(course.halted)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a trial's process tells Ray Tune."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    return told


def test_every_evaluation_is_told_also_of_a_run_that_was_finished_before(
    bench: Bench, lease: Lease, reported: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_ray.search.trial._LOOK_S", 100)  # a trial that ends before it was looked at
    course = course_of(bench, lease, [FIRST])
    begun = course.next()
    assert begun is not None
    carry_out({"order": begun[1]})
    assert [result.get("step") for result in reported] == [1, 2, 3, 4, 5, None]
    assert reported[-1] == {"ending": "finished", "reason": ""}
    assert all(METRIC in result for result in reported[:-1])
    # As after a kill between the end of a training and the ledger's line.
    first = list(reported)
    reported.clear()
    carry_out({"order": begun[1]})
    assert reported == first


def test_a_node_that_does_not_see_the_study_says_so(bench: Bench, lease: Lease, tmp_path: Path) -> None:
    begun = course_of(bench, lease, [FIRST]).next()
    assert begun is not None
    elsewhere = replace(begun[1], lease=(tmp_path / "elsewhere" / "lease", 1, ""))
    with pytest.raises(ClusterError, match=r"^studies_dir: node .* does not see .*/elsewhere; set it to a folder that"):
        carry_out({"order": elsewhere})


def test_a_halted_study_waits_for_those_that_run_and_for_nobody_else(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    first, waiting = begin(course), begin(course)
    ends = _Halted(course)
    course.retried(waiting.number)  # its node is gone, and there may never be another
    assert not ends.stop_all()
    course.halt(ClusterError("no room"))
    assert not ends.stop_all()
    course.ended(first.number, "interrupted", "")
    assert ends.stop_all()


def test_a_trial_that_stopped_by_itself_halts_all(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST, SECOND])
    course.ended(begin(course).number, "interrupted", "")
    assert course.next() is None
    assert isinstance(course.halted, Interrupted)


def test_halving_that_could_stop_none_is_refused(bench: Bench, lease: Lease) -> None:
    assert bench.stopping is not None
    late = replace(bench, stopping=bench.stopping.model_copy(update={"first": 6}))
    with pytest.raises(StudyError, match=r"stopping\.first = 6, and a trial has 6 steps"):
        course_of(late, lease, []).check_stopping()


def test_a_study_of_other_held_out_pairs_is_refused(bench: Bench, tmp_path: Path) -> None:
    with bench.held(say=print):
        pass
    elsewhere = tmp_path / "elsewhere.jsonl"  # the same pairs: scores name their lines
    elsewhere.write_text(Path(bench.heldout.entry).read_text())
    other = replace(bench, heldout=HeldOut.of(str(elsewhere)))
    with pytest.raises(StudyError, match="begun with other settings or content of heldout"), other.held(say=print):
        pass


def test_halving_knows_what_earlier_commands_saw(bench: Bench, lease: Lease) -> None:
    bench.folder.mkdir(parents=True)
    ledger = Ledger(bench.folder)
    for number, value in enumerate([0.2, 0.4, 0.6, 0.8]):
        ledger.record(Trial(number, "variant", str(number), {}, {}, state="stopped", curve=((1, value),)))
    course = course_of(bench, lease, [FIRST, SECOND, Wanted("proposed", "b", {"loss.kappa": 2.0})])
    scheduler = _scheduler(course)
    course.scratch.mkdir()
    told = [SimpleNamespace(trial_id=str(n), config={"number": begin(course).number}) for n in range(3)]
    controller: Any = None
    for trial, value in zip(told, [0.1, 0.3, 0.45], strict=True):
        number = trial.config["number"]
        scheduler.on_trial_add(controller, trial)  # pyright: ignore[reportArgumentType]
        result = {"step": 1, METRIC: value}
        # It never has Ray Tune kill one.
        assert scheduler.on_trial_result(controller, trial, result) == "CONTINUE"  # pyright: ignore[reportArgumentType]
        course.evaluated(number, 1, value)
    # The recipe's own settings are compared with, and go on however they fare. 0.3 is below the median of the five
    # before it, 0.4, of which this command saw one; 0.45 is above that of the six before it, 0.35.
    assert list(course.behind) == [5]
    assert [path.name for path in course.scratch.iterdir()] == ["stop-5"]
    course.ended(5, "interrupted", "")
    assert course.ledger[5].state == "stopped"
    assert course.ledger[5].reason.startswith(f"{METRIC} 0.3 after step 1: not in the best 1/2 of the trials that came")
    assert course.ledger[5].curve == ((1, 0.3),)


def test_a_lost_process_is_told_by_its_last_word(bench: Bench, lease: Lease) -> None:
    course = course_of(bench, lease, [FIRST])
    trial = begin(course)
    course.retried(trial.number)
    assert course.ledger[0].attempts == 2
    course.lost(trial.number, RuntimeError("Traceback\n  somewhere\nValueError: what it was\n"))
    assert (course.ledger[0].state, course.ledger[0].reason) == ("failed", "ValueError: what it was")
