"""What befalls a training on Ray's workers costs no more than the steps since the last checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slime_ray.runs import Run
from tests.faults.harness import Fault, Start, assert_same_outcome, in_workers, run_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Steps long enough to be met in their middle.
ON_RAY = ("training.num_workers=2", "training.max_steps=40", "training.eval_every=10")


@pytest.fixture(scope="module")
def two_workers(in_one_go: Callable[..., Run]) -> Run:
    """The run on two workers."""
    return in_one_go(*ON_RAY)


def lines(run: Run) -> int:
    return len(run.metrics())


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes that train for a command."""
    children = psutil.Process(driver).children(recursive=True)
    return [process for process in children if "RayTrainWorker" in " ".join(process.cmdline())]


def test_a_worker_exits_in_the_middle(recipe: Path, place: str, start: Start, two_workers: Run, tmp_path: Path) -> None:
    run = run_of(recipe, place, *ON_RAY)
    fault = Fault(str(run.metrics_file), 17, signal=0, once=str(tmp_path / "struck"))
    ended = start(recipe, place, *ON_RAY, environment=in_workers(fault)).wait(300)
    assert ended.code == 0, ended.err
    assert (tmp_path / "struck").exists()
    assert_same_outcome(run, two_workers)
    lost = [event.message for event in run.events() if event.kind == "worker lost"]
    assert len(lost) == 1
    assert "worker 0 died" in lost[0]
    manifest = run.manifest()
    assert manifest is not None
    assert manifest.failures == 1


def test_the_driver_is_killed_and_later_asked_to_stop(recipe: Path, place: str, start: Start, two_workers: Run) -> None:
    run = run_of(recipe, place, *ON_RAY)
    first = start(recipe, place, *ON_RAY)
    wait_until(lambda: lines(run) > 12)
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL

    second = start(recipe, place, *ON_RAY)
    wait_until(lambda: lines(run) > 25, timeout_s=120)
    second.send(signal.SIGTERM)
    stopped = second.wait()
    assert stopped.code == 130, stopped.err
    assert lines(run) < 40
    assert stopped.err.splitlines()[-1].startswith(f"{run.name}: stopped after step ")
    third = start(recipe, place, *ON_RAY).wait(300)
    assert third.code == 0, third.err
    assert_same_outcome(run, two_workers)


def test_a_worker_that_freezes_is_found_and_named(recipe: Path, place: str, start: Start, two_workers: Run) -> None:
    run = run_of(recipe, place, *ON_RAY)
    command = start(recipe, place, *ON_RAY, "training.hang_minutes=0.1")
    wait_until(lambda: lines(run) > 12)
    assert command.process.pid is not None
    frozen = workers_of(command.process.pid)
    frozen[-1].suspend()
    ended = command.wait(300)
    assert ended.code == 0, ended.err
    lost = [event.message for event in run.events() if event.kind == "worker lost"]
    assert any("hangs and did not answer" in message for message in lost)
    assert not frozen[-1].is_running()
    assert_same_outcome(run, two_workers)
