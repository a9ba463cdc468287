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

STEPS = 80
ON_RAY = ("training.num_workers=2", f"training.max_steps={STEPS}", "training.eval_every=20")
# A cluster of the command's own, which does not wait half a minute for a frozen worker to say goodbye.
CLUSTER = {"RAY_ADDRESS": "local", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1"}


@pytest.fixture(scope="module")
def two_workers(in_one_go: Callable[..., Run]) -> Run:
    """The run on two workers."""
    return in_one_go(*ON_RAY, environment=CLUSTER)


def lines(run: Run) -> int:
    return len(run.metrics())


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes that train for a command, by their rank."""
    children = psutil.Process(driver).children(recursive=True)
    return [process for process in children if "RayTrainWorker" in " ".join(process.cmdline())]


def test_a_worker_exits_and_another_freezes(
    recipe: Path, place: str, start: Start, two_workers: Run, tmp_path: Path
) -> None:
    run = run_of(recipe, place, *ON_RAY)
    exits = Fault(str(run.metrics_file), 17, signal=0, once=str(tmp_path / "struck"))
    command = start(recipe, place, *ON_RAY, "training.hang_minutes=0.1", environment=CLUSTER | in_workers(exits))
    wait_until(lambda: "worker lost" in [event.kind for event in run.events()])
    wait_until(lambda: lines(run) > 30)
    assert command.process.pid is not None
    frozen = workers_of(command.process.pid)[-1]
    frozen.suspend()
    ended = command.wait(300)
    assert ended.code == 0, ended.err
    first, second = (event.message for event in run.events() if event.kind == "worker lost")
    assert "worker 0 died" in first
    assert second.endswith("hangs and did not answer")
    assert not frozen.is_running()
    assert_same_outcome(run, two_workers)
    manifest = run.manifest()
    assert manifest is not None
    assert manifest.failures == 2


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
