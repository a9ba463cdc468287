"""Elastic workers: nodes that go and come change how many train, not what is learned."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from slime_ray.overrides import load_recipe
from slime_ray.runs import Run
from slime_ray.training import fit
from slime_ray.training.fit import train
from tests.faults.harness import run_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Without dropout, whose draws depend on the worker; each row a micro-batch, so that steps take a while.
SETTINGS = (
    "lora.dropout=0",
    "training.tokens_per_micro_batch=1",
    "training.eval_every=20",
    "training.max_steps=160",
)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has no room for workers; this process is connected to it."""
    monkeypatch.setattr(fit, "RESIZE_LOOK_S", 3.0)
    # A node that is gone without a word is noticed after some seconds; Ray then waits so long for workers on it.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run in one process, undisturbed."""
    return train(load_recipe(recipe, [f"runs_dir={tmp_path_factory.mktemp('alone')}", *SETTINGS]))


def workers_by_attempt(run: Run) -> list[int]:
    return [int(event.message.removeprefix("workers: ")) for event in run.events() if event.message[:8] == "workers:"]


def last_step(run: Run) -> int:
    return int(run.metrics()[-1]["step"]) if run.metrics() else 0


def assert_same_held_out_metrics(run: Run, undisturbed: Run) -> None:
    """At every evaluation, within 1e-4."""
    lines, expected = ([line for line in each.metrics() if "eval_loss" in line] for each in (run, undisturbed))
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, abs=1e-4)


def test_two_workers_then_one_then_two(recipe: Path, place: str, nodes: Cluster, alone: Run) -> None:
    elastic = (place, *SETTINGS, "training.num_workers=[1, 2]")
    run = run_of(recipe, *elastic)
    nodes.add_node(num_cpus=1)
    leaving = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, load_recipe(recipe, list(elastic)))
        wait_until(lambda: last_step(run) >= 20)
        nodes.remove_node(leaving, allow_graceful=True)
        wait_until(lambda: workers_by_attempt(run) == [2, 1] and last_step(run) >= 30, timeout_s=180)
        nodes.add_node(num_cpus=1)
        assert trained.result(timeout=300) == run
    assert workers_by_attempt(run) == [2, 1, 2]
    assert [event.kind for event in run.events()].count("worker lost") == 1
    assert_same_held_out_metrics(run, alone)


def test_one_of_four_nodes_is_lost(recipe: Path, place: str, nodes: Cluster, alone: Run) -> None:
    elastic = (place, *SETTINGS, "training.num_workers=[2, 4]")
    run = run_of(recipe, *elastic)
    four = [nodes.add_node(num_cpus=1) for _ in range(4)]
    nodes.wait_for_nodes()
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, load_recipe(recipe, list(elastic)))
        wait_until(lambda: last_step(run) >= 20)
        nodes.remove_node(four[1], allow_graceful=False)
        assert trained.result(timeout=300) == run
    assert workers_by_attempt(run) == [4, 3]
    assert_same_held_out_metrics(run, alone)
