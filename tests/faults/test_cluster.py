"""A job of a started cluster, whatever dies under it: a node, the driver, the head and with it the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from slime_ray.runs import Run, all_runs
from tests.faults.harness import wait_until
from tests.started_cluster import Node, StartedCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Each row a micro-batch, so that there is time to kill something.
SETTINGS = ("training.num_workers=2", "training.max_steps=120", "training.eval_every=40")
SLOWLY = ("training.tokens_per_micro_batch=1", "checkpoint.every_steps=5", "training.wait_minutes=3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[StartedCluster]:
    """A head that runs drivers alone, and as many workers as a job needs."""
    with StartedCluster() as started:
        started.start_head(cpus=0)
        started.start_workers(2)
        yield started


@pytest.fixture(scope="module")
def expected(in_one_go: Callable[..., Run]) -> Run:
    """The run that nothing befell, with as many workers."""
    return in_one_go(*SETTINGS, *SLOWLY)


@pytest.fixture
def job(cluster: StartedCluster, recipe: Path, tmp_path: Path) -> Callable[[], str]:
    """Submit the recipe, without waiting for it; its id."""

    def submit() -> str:
        arguments = ("submit", "train", recipe.name, *SETTINGS, *SLOWLY, f"runs_dir={tmp_path / 'runs'}", "--no-wait")
        answer = cluster.run(*arguments, folder=recipe.parent)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    return submit


def end_of(cluster: StartedCluster, name: str) -> int:
    answer = cluster.run("logs", name, "--follow")
    return answer.returncode


def run_in(folder: Path) -> Run | None:
    runs = all_runs(folder, [])
    return runs[0] if runs else None


def wait_for_step(step: int, cluster: StartedCluster, name: str, folder: Path) -> None:
    """Return in the middle of a run."""

    def reached() -> bool:
        run = run_in(folder)
        return run is not None and int(run.last_metrics().get("step", 0)) >= step

    try:
        wait_until(reached, timeout_s=150)
    except AssertionError:
        pytest.fail(cluster.run("logs", name).stdout)
    run = run_in(folder)
    assert run is not None
    assert run.manifest() is None


def has_workers(node: Node) -> bool:
    """Whether training runs on a node."""
    names = [process.name() for process in psutil.Process(node.process.pid).children(recursive=True)]
    return any("RayTrainWorker" in name for name in names)


def content(run: Run) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """Weights to the bit, and metrics but for the timings."""
    timings = {"tokens_per_second", "pairs_per_second"}
    lines = [{key: value for key, value in line.items() if key not in timings} for line in run.metrics()]
    return lines, {path.name: path.read_bytes() for path in run.final.rglob("*.safetensors")}


def test_a_node_dies_then_the_driver_then_the_head(
    cluster: StartedCluster, job: Callable[[], str], expected: Run, tmp_path: Path
) -> None:
    name, runs = job(), tmp_path / "runs"
    wait_for_step(10, cluster, name, runs)
    next(node for node in cluster.workers if has_workers(node)).kill()
    # There is no room for two workers until another node has come.
    wait_until(lambda: "waiting up to 3 minutes" in cluster.run("logs", name).stdout, timeout_s=90)
    cluster.start_workers(1)
    run = run_in(runs)
    assert run is not None
    assert [event.kind for event in run.events() if event.kind == "worker lost"] == ["worker lost"]

    wait_for_step(40, cluster, name, runs)
    (driver,) = (process for process in psutil.process_iter() if "jobs.train" in drivers_arguments(process, cluster))
    driver.kill()
    assert end_of(cluster, name) == 137
    assert job() == f"{name}-2"

    wait_for_step(70, cluster, f"{name}-2", runs)
    assert cluster.head is not None
    cluster.head.kill()
    for node in cluster.workers:
        if node.process.poll() is None:
            node.kill()
    assert run.manifest() is None
    cluster.start_head(cpus=0)
    cluster.start_workers(2)
    # The new cluster knows of no job; the run's folder knows how far it was.
    assert job() == name
    assert end_of(cluster, name) == 0
    assert [event.kind for event in run.events() if event.kind == "resumed"] == ["resumed"] * 3
    assert content(run) == content(expected)


def drivers_arguments(process: psutil.Process, cluster: StartedCluster) -> list[str]:
    """The command line of a Python process below this cluster's head, else nothing."""
    assert cluster.head is not None
    try:
        below = cluster.head.process.pid in [parent.pid for parent in process.parents()]
        return process.cmdline() if below and process.name().startswith("python") else []
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
