"""Whatever befalls a study, the same command ends it, and every trial is counted once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from slime_ray.search.trials import Trial, ledger_file, read_trials
from tests.command_line import COMMAND
from tests.faults.harness import Fault, in_workers, wait_until
from tests.faults.test_disk import disk, fill
from tests.studies import SPACE, WriteStudy, write_study

__all__ = ["disk", "write_study"]

pytestmark = pytest.mark.timeout(600)

CLUSTER = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
LINES = ("trials = 6", "concurrent = 2")
# Long enough to be caught under way.
LONG = {"training.max_steps": 60, "training.eval_every": 20, "checkpoint.every_steps": 5}

Tune = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def tune(tmp_path: Path) -> Iterator[Tune]:
    """A function that starts `slime-ray tune STUDY` in a process of its own; what still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(study: Path, *overrides: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        log = (tmp_path / f"{len(started)}.log").open("w")
        command = [sys.executable, "-c", COMMAND, "tune", str(study), *overrides]
        settings = os.environ | CLUSTER | (environment or {})
        started.append(subprocess.Popen(command, env=settings, stderr=log, stdout=log, text=True))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            each.kill()
        each.wait()


def marked(mark: str) -> list[psutil.Process]:
    """Processes that a command left behind, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                found.append(process)
    return found


def log_of(tmp_path: Path, number: int) -> str:
    return (tmp_path / f"{number}.log").read_text()


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "study"


def steps(tmp_path: Path, trial: Trial) -> int:
    """That a trial's run has done so far."""
    metrics = tmp_path / "runs" / str(trial.run) / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def assert_all_counted_once(tmp_path: Path, *, trials: int = 6) -> list[Trial]:
    found = read_trials(folder_of(tmp_path))
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state for trial in found} == {"finished"}
    assert (folder_of(tmp_path) / "best.toml").exists()
    assert len({trial.run for trial in found}) == trials
    return found


def wait_under_way(tmp_path: Path, *, past: int) -> None:
    """Until two trials run, of which one is past a step."""
    wait_until(lambda: any(steps(tmp_path, t) > past for t in read_trials(folder_of(tmp_path))), timeout_s=120)


@pytest.mark.slow
def test_the_driver_is_stopped_and_killed_and_then_a_trial_dies(
    write_study: WriteStudy, tune: Tune, tmp_path: Path
) -> None:
    study = write_study(*LINES, tables=SPACE, settings=LONG)
    stopped = tune(study)
    wait_under_way(tmp_path, past=7)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(100) == 130, log_of(tmp_path, 0)
    assert log_of(tmp_path, 0).splitlines()[-1] == "study: stopped; the same command goes on"
    begun = read_trials(folder_of(tmp_path))
    assert {trial.state for trial in begun} == {"running"}
    reached = {t.run: steps(tmp_path, t) for t in begun}
    for trial in begun:  # a checkpoint of the very step, whether one was due or not
        assert (tmp_path / "runs" / str(trial.run) / "checkpoints" / f"step-{reached[trial.run]:08}").exists()

    killed = tune(study)
    wait_under_way(tmp_path, past=max(reached.values()) + 6)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert {trial.number for trial in read_trials(folder_of(tmp_path))} == {trial.number for trial in begun}
    # A line that the crash cut short, as it might have been.
    with ledger_file(folder_of(tmp_path)).open("a") as ledger:
        ledger.write('{"number": 0, "origin": "rec')

    struck = tmp_path / "struck"
    dies = Fault("metrics.jsonl", 30, signal=0, once=str(struck))
    last = tune(study, environment=in_workers(dies))
    assert last.wait(200) == 0, log_of(tmp_path, 2)
    found = assert_all_counted_once(tmp_path)
    assert struck.exists()
    # Twice the driver's trials, and the one that died.
    assert sum(trial.attempts - 1 for trial in found) == 2 * len(begun) + 1
    assert log_of(tmp_path, 2).count("its process failed; trying once more") == 1
    # They went on from their checkpoints.
    events = (tmp_path / "runs" / str(found[0].run) / "events.jsonl").read_text()
    assert events.count('"resumed"') >= 2


@pytest.mark.slow
def test_a_trial_that_always_dies_is_a_failed_one(write_study: WriteStudy, tune: Tune, tmp_path: Path) -> None:
    study = write_study("trials = 3", "concurrent = 1", tables=SPACE)
    command = tune(study, environment=in_workers(Fault("trial-", 0, signal=0)))
    assert command.wait(200) == 2, log_of(tmp_path, 0)
    found = read_trials(folder_of(tmp_path))
    assert [(trial.state, trial.attempts) for trial in found] == [("failed", 2)] * 3
    last = log_of(tmp_path, 0).splitlines()[-1]
    assert last.startswith("error: study: none of 3 trials finished; the first, trial 0, failed: ")


@pytest.mark.slow
def test_a_full_disk_ends_the_study_and_costs_no_trial(
    disk: Path, write_study: WriteStudy, tune: Tune, tmp_path: Path
) -> None:
    study = write_study(*LINES, tables=SPACE, settings=LONG | {"runs_dir": str(disk / "runs")})
    first = tune(study)
    wait_until(lambda: list(disk.glob("runs/study/*/checkpoints/*/manifest.json")), timeout_s=120)
    ballast = disk / "ballast"
    fill(ballast)
    assert first.wait(100) == 2, log_of(tmp_path, 0)
    last = log_of(tmp_path, 0).splitlines()[-1]
    assert last.startswith("error: trial ")
    assert "set runs_dir to another disk" in last
    assert str(disk) in last
    assert {trial.state for trial in read_trials(folder_of(tmp_path))} == {"running"}
    ballast.unlink()
    assert tune(study).wait(200) == 0, log_of(tmp_path, 1)
    assert_all_counted_once(tmp_path)


@pytest.mark.slow
def test_trials_on_workers_of_ray_train(write_study: WriteStudy, tune: Tune, tmp_path: Path) -> None:
    tables = SPACE + "\n[stopping]\nfirst = 1\nfactor = 2\n"
    study = write_study("trials = 2", tables=tables, settings={"training.num_workers": 1})
    command = tune(study, environment={"MARK": str(tmp_path)})
    # On a cluster of as many CPUs as trials: each one's own process takes none.
    assert command.wait(280) == 0, log_of(tmp_path, 0)
    found = read_trials(folder_of(tmp_path))
    assert [trial.state in ("finished", "stopped") for trial in found] == [True] * 2
    assert all(trial.curve for trial in found)
    wait_until(lambda: not marked(str(tmp_path)), timeout_s=30)
