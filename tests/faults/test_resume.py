"""Whatever ends a training, the same command gives the weights and metrics of one that nothing disturbed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from slime_ray.runs import Run
from tests.faults.harness import Fault, Start, assert_same_outcome, run_of, wait_until

# In metrics.jsonl the line of step n is the nth, but for one line more for each evaluation before it.
IN_STEP_7 = 8


@pytest.mark.parametrize(("part", "kills"), [("/checkpoints/", 10), ("/final", 7), ("", 3)])
def test_killed_while_it_writes(
    part: str, kills: int, recipe: Path, start: Start, undisturbed: Run, tmp_path: Path
) -> None:
    """Twenty seeded moments: in a checkpoint, in final/, and anywhere in the run's folder."""
    counted = tmp_path / "operations"
    never = f"runs_dir={tmp_path / 'never'}"
    inside = f"{run_of(recipe, never).folder}{part}"
    start(recipe, never, fault=Fault(inside, operation=10**9, count_to=str(counted))).wait()
    operations = int(counted.read_text())
    assert operations > kills
    random = Random(f"kills/{part}")
    for number in range(kills):
        place = f"runs_dir={tmp_path / str(number)}"
        moment = random.randrange(operations), random.choice([0.0, random.uniform(0, 2e-3)])
        killed = start(recipe, place, fault=Fault(f"{run_of(recipe, place).folder}{part}", *moment)).wait()
        assert killed.code == -signal.SIGKILL, (moment, killed.err)
        again = start(recipe, place).wait()
        assert again.code == 0, (moment, again.err)
        assert_same_outcome(run_of(recipe, place), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(number: int, recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    stopped = start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=number)).wait()
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == f"{run.name}: stopped after step 7; the same command goes on from there"
    assert "Traceback" not in stopped.err
    assert [path.name for path in sorted(run.checkpoints.iterdir())][-1] == "step-00000007"
    assert run.state() == "interrupted"
    again = start(recipe, place).wait()
    assert again.code == 0, again.err
    assert_same_outcome(run, undisturbed)
    assert [(event.kind, event.step) for event in run.events() if event.kind != "warning"] == [
        ("started", 0),
        ("interrupted", 7),
        ("resumed", 7),
        ("finished", None),
    ]


def files(run: Run) -> dict[Path, bytes]:
    """The content of a run's folder, but for its lease."""
    found = (path for path in run.folder.rglob("*") if path.is_file() and run.lease not in path.parents)
    return {path: path.read_bytes() for path in found}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        ("optimizer.safetensors", truncate, "has "),
        ("model.safetensors", flip_a_bit, "has other content than was written"),
        ("position.json", Path.unlink, "is missing"),
        ("manifest.json", flip_a_bit, "changed after it was written"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    name: str, damage: Callable[[Path], None], found: str, recipe: Path, place: str, start: Start, undisturbed: Run
) -> None:
    run = run_of(recipe, place)
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGTERM)).wait().code == 130
    file = run.checkpoints / "step-00000007" / name
    damage(file)
    again = start(recipe, place).wait()
    assert again.code == 0, again.err
    warning = next(line for line in again.err.splitlines() if "refused" in line)
    assert f"a checkpoint was refused: {file}" in warning
    assert found in warning or name == "manifest.json"
    assert warning.endswith("; going on from step 6")
    assert_same_outcome(run, undisturbed)


def test_no_sound_checkpoint_is_left(recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGTERM)).wait()
    for folder in run.checkpoints.iterdir():
        truncate(folder / "model.safetensors")
    again = start(recipe, place).wait()
    assert again.code == 0, again.err
    assert sum("going on from the start" in line for line in again.err.splitlines()) == 3
    assert_same_outcome(run, undisturbed)


def test_the_same_command_twice_at_once(recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    first = start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGSTOP))
    wait_until(first.stopped)
    leaves = start(recipe, place).wait()
    assert leaves.code == 2
    held = f"{run.name} is held by process {first.process.pid} on "
    assert leaves.err.splitlines()[-1].startswith(f"error: {held}")
    assert leaves.err.splitlines()[-1].endswith("; wait for it with --wait, or stop that process")

    waits = start(recipe, place, "--wait")
    wait_until(lambda: held in waits.printed())
    first.send(signal.SIGCONT)
    assert first.wait().code == 0
    assert waits.wait().code == 0
    assert waits.printed().splitlines()[-1] == str(run.folder)
    assert "resumed" not in [event.kind for event in run.events()]
    assert_same_outcome(run, undisturbed)


def test_a_dead_holder_is_no_holder(recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7)).wait().code == -signal.SIGKILL
    again = start(recipe, place).wait()
    assert again.code == 0, again.err
    assert_same_outcome(run, undisturbed)


def test_a_holder_that_was_taken_for_dead_writes_no_more_than_it_was_writing(
    recipe: Path, place: str, start: Start, undisturbed: Run
) -> None:
    run = run_of(recipe, place)
    first = start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGSTOP))
    wait_until(first.stopped)
    # As it looks from a machine that cannot see the process: someone takes its lease, and lets it go again.
    entry = next(run.lease.iterdir())
    entry.with_name("000002.json").write_text(entry.read_text().replace('"released":false', '"released":true'))
    second = start(recipe, place).wait()
    assert second.code == 0, second.err
    assert_same_outcome(run, undisturbed)
    before = files(run)
    first.send(signal.SIGCONT)
    ended = first.wait()
    assert ended.code == 2
    assert "another process holds this run now" in ended.err.splitlines()[-1]
    now = files(run)
    changed = {path.name for path in now.keys() | before.keys() if now.get(path) != before.get(path)}
    # The line that it was stopped in.
    assert changed <= {"metrics.jsonl"}


def test_killed_while_only_the_start_was_checkpointed(recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    seldom = "checkpoint.every_steps=100"
    # The first evaluation's line, then those of the first steps.
    killed = start(recipe, place, seldom, fault=Fault(str(run.metrics_file), 3)).wait()
    assert killed.code == -signal.SIGKILL
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000000"]
    again = start(recipe, place, seldom).wait()
    assert again.code == 0, again.err
    assert_same_outcome(run, undisturbed)


def test_what_a_kill_left_of_a_checkpoint_is_removed(recipe: Path, place: str, start: Start, undisturbed: Run) -> None:
    run = run_of(recipe, place)
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7)).wait().code == -signal.SIGKILL
    left = run.checkpoints / "step-00000005"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert start(recipe, place).wait().code == 0
    assert not left.exists()
    assert_same_outcome(run, undisturbed)


def test_a_run_that_fails_before_its_first_line_keeps_its_checkpoints(
    recipe: Path, place: str, start: Start, tmp_path: Path
) -> None:
    silent = ("training.log_every=1000", "data.eval=[]")
    run = run_of(recipe, place, *silent)
    stop = Fault(f"{run.checkpoints}/step-00000004/manifest.json", 0, signal=signal.SIGTERM)
    assert start(recipe, place, *silent, fault=stop).wait().code == 130
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    # What it needs goes missing: the command fails before a line of metrics is written.
    ended = start(recipe, place, *silent, "training.use_gpu=true").wait()
    assert ended.code == 2
    assert sorted(path.name for path in run.checkpoints.iterdir()) == kept
    assert run.state() == "failed"


def test_a_run_that_lost_its_lineage_keeps_its_checkpoints(
    recipe: Path, place: str, start: Start, undisturbed: Run
) -> None:
    run = run_of(recipe, place)
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGTERM)).wait().code == 130
    (run.folder / "lineage.json").unlink()
    assert start(recipe, place).wait().code == 0
    assert [event.step for event in run.events() if event.kind == "resumed"] == [7]
    assert_same_outcome(run, undisturbed)


def test_the_folder_of_another_run_is_refused_and_left_as_it_is(recipe: Path, place: str, start: Start) -> None:
    run, other = run_of(recipe, place), run_of(recipe, place, "training.seed=1")
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGTERM)).wait().code == 130
    run.folder.rename(other.folder)
    before = {
        path: path.read_bytes() for path in other.folder.rglob("*") if path.is_file() and "lease" not in str(path)
    }
    ended = start(recipe, place, "training.seed=1").wait()
    assert ended.code == 2
    assert f"{other.folder}: the folder of another run ({run.name}, " in ended.err.splitlines()[-1]
    assert files(other) == before
