"""Elastic workers: nodes that go and come change how many train, not what is learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from slime_ray.overrides import load_recipe
from slime_ray.runs import Run
from slime_ray.training import cluster, workers
from slime_ray.training.fit import train
from tests.faults.harness import run_of, wait_until

pytestmark = pytest.mark.timeout(600)

# Without dropout, whose draws depend on the worker.
NO_DROPOUT = "lora.dropout=0"
# Each row a micro-batch, so that steps take a while.
SLOWLY = "training.tokens_per_micro_batch=1"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has no room for workers; this process is connected to it."""
    monkeypatch.setattr(workers, "RESIZE_LOOK_S", 3.0)
    monkeypatch.setattr(cluster, "_PREEMPTION_LOOK_S", 0.2)
    # A node that is gone without a word is noticed after some seconds; Ray then waits so long for workers on it.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


def announce_end(cluster: Cluster, node: Any, *, in_s: float) -> None:
    """Have the cluster drain a node, as a cloud does before it takes a machine away."""
    deadline_ms = int((time.time() + in_s) * 1000)
    reasons: Any = autoscaler_pb2
    reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(node.node_id, reason, "test", deadline_ms)
    assert accepted, why


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


@pytest.mark.slow
def test_two_workers_then_one_then_two(recipe: Path, place: str, nodes: Cluster, in_one_go: Callable[..., Run]) -> None:
    settings = (NO_DROPOUT, "training.max_steps=450", "training.eval_every=150")
    undisturbed = in_one_go(*settings)
    elastic = (place, *settings, SLOWLY, "training.num_workers=[1, 2]", "checkpoint.every_steps=1000")
    run = run_of(recipe, *elastic)
    nodes.add_node(num_cpus=1)
    leaving = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, load_recipe(recipe, list(elastic)))
        wait_until(lambda: last_step(run) >= 20, timeout_s=150)
        announce_end(nodes, leaving, in_s=4)
        noticed = last_step(run)
        wait_until(lambda: workers_by_attempt(run) == [2, 1] and last_step(run) > noticed, timeout_s=180)
        nodes.add_node(num_cpus=1)
        assert trained.result(timeout=300) == run
    assert workers_by_attempt(run) == [2, 1, 2]
    # A checkpoint was written at the announcement: before step 150 there is no other. And it was no failure.
    again = next(event.step for event in run.events() if event.kind == "resumed")
    assert again is not None
    assert noticed <= again < 150
    assert "worker lost" not in [event.kind for event in run.events()]
    assert "the cluster took away the nodes of workers" in " ".join(event.message for event in run.events())
    assert_same_held_out_metrics(run, undisturbed)


@pytest.mark.slow
def test_one_of_four_nodes_is_lost(recipe: Path, place: str, nodes: Cluster, in_one_go: Callable[..., Run]) -> None:
    settings = (NO_DROPOUT, "training.max_steps=80", "training.eval_every=20")
    undisturbed = in_one_go(*settings)
    elastic = (place, *settings, SLOWLY, "training.num_workers=[2, 4]")
    run = run_of(recipe, *elastic)
    four = [nodes.add_node(num_cpus=1) for _ in range(4)]
    nodes.wait_for_nodes()
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(train, load_recipe(recipe, list(elastic)))
        wait_until(lambda: last_step(run) >= 20, timeout_s=150)
        nodes.remove_node(four[1], allow_graceful=False)
        assert trained.result(timeout=300) == run
    assert workers_by_attempt(run) == [4, 3]
    assert_same_held_out_metrics(run, undisturbed)
