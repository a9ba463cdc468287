"""What befalls a training on Ray's workers costs no more than the steps since the last checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slime_ray.runs import Run
from tests.faults.harness import HANG, Fault, Start, assert_same_outcome, in_workers, run_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 60
ON_RAY = ("training.num_workers=2", f"training.max_steps={STEPS}", "training.eval_every=20")
# A cluster of the command's own, which does not wait half a minute for a frozen worker to say goodbye.
CLUSTER = {"RAY_ADDRESS": "local", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1"}


@pytest.fixture(scope="module")
def two_workers(in_one_go: Callable[..., Run]) -> Run:
    """The run on two workers."""
    return in_one_go(*ON_RAY, environment=CLUSTER)


def lines(run: Run) -> int:
    return len(run.metrics())


def lost(run: Run) -> int:
    return [event.kind for event in run.events()].count("worker lost")


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes that train for a command, by their rank."""
    children = psutil.Process(driver).children(recursive=True)
    return [process for process in children if "RayTrainWorker" in " ".join(process.cmdline())]


def test_a_worker_exits_one_hangs_and_one_freezes(
    recipe: Path, place: str, start: Start, two_workers: Run, tmp_path: Path
) -> None:
    run = run_of(recipe, place, *ON_RAY)
    log = str(run.metrics_file)
    exits = Fault(log, 9, signal=0, once=str(tmp_path / "exited"))
    hangs = Fault(log, 17, signal=HANG, once=str(tmp_path / "hung"))
    command = start(recipe, place, *ON_RAY, "training.hang_minutes=0.1", environment=CLUSTER | in_workers(exits, hangs))
    wait_until(lambda: lost(run) == 2, timeout_s=180)
    wait_until(lambda: lines(run) > 40)
    assert command.process.pid is not None
    frozen = workers_of(command.process.pid)[-1]
    frozen.suspend()
    ended = command.wait(300)
    assert ended.code == 0, ended.err
    first, second, third = (event.message for event in run.events() if event.kind == "worker lost")
    assert "worker 0 died" in first
    assert "worker 0 died" in second
    named = next(event.message for event in run.events() if " hung for 6 s in " in event.message)
    assert named.startswith("worker 0, process ")
    assert "harness.py:" in named
    assert third.endswith("hangs and did not answer")
    assert not frozen.is_running()
    assert_same_outcome(run, two_workers)
    manifest = run.manifest()
    assert manifest is not None
    assert manifest.failures == 3


def test_the_driver_is_killed_and_later_asked_to_stop(recipe: Path, place: str, start: Start, two_workers: Run) -> None:
    run = run_of(recipe, place, *ON_RAY)
    first = start(recipe, place, *ON_RAY, environment=CLUSTER)
    wait_until(lambda: lines(run) > 12)
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL

    second = start(recipe, place, *ON_RAY, environment=CLUSTER)
    wait_until(lambda: lines(run) > 25, timeout_s=120)
    second.send(signal.SIGTERM)
    stopped = second.wait()
    assert stopped.code == 130, stopped.err
    assert lines(run) < STEPS
    assert stopped.err.splitlines()[-1].startswith(f"{run.name}: stopped after step ")
    third = start(recipe, place, *ON_RAY, environment=CLUSTER).wait(300)
    assert third.code == 0, third.err
    assert_same_outcome(run, two_workers)
