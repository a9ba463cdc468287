"""What the cluster cannot place is said before anything waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from slime_ray.config.training import TrainingConfig
from slime_ray.errors import ClusterError
from slime_ray.training.cluster import check_resources, joined, places, worker_resources

TWO_NODES = [{"CPU": 2.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:8265", "this is the address of a dashboard, .*; expected auto or one such as 10"),
        ("nowhere", "cannot be joined"),
        ("127.0.0.1:9:9", "cannot be joined"),
    ],
)
def test_what_is_no_address_is_a_sentence(address: str, sentence: str) -> None:
    with pytest.raises(ClusterError, match=f"^--address {address}: {sentence}"), joined(address):
        pass


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(values)


def test_workers_that_fit_are_let_through() -> None:
    check_resources(settings(num_workers=4), TWO_NODES)
    check_resources(settings(num_workers=2, cpus_per_worker=2), TWO_NODES)
    # Of elastic workers the fewest have to fit.
    check_resources(settings(num_workers=[4, 8]), TWO_NODES)


def test_ten_tenths_of_a_gpu_are_a_gpu() -> None:
    tenth = worker_resources(settings(num_workers=1, use_gpu=True, gpus_per_worker=0.1))
    assert places(tenth, [{"CPU": 16.0, "GPU": 1.0}]) == 10


@pytest.mark.parametrize("workers", [2, [1, 2]])
def test_workers_of_one_run_share_no_gpu(workers: Any) -> None:
    with pytest.raises(
        ValueError, match=r"gpus_per_worker = 0\.5 puts several workers .* expected num_workers = 1 or 0"
    ):
        settings(num_workers=workers, use_gpu=True, gpus_per_worker=0.5)


@pytest.mark.parametrize("workers", [5, [5, 8]])
def test_more_than_all_nodes_have_together(workers: Any) -> None:
    with pytest.raises(ClusterError, match=r"num_workers = 5 with 1 CPU each .* the Ray cluster has 4; lower"):
        check_resources(settings(num_workers=workers), TWO_NODES)


def test_a_worker_larger_than_every_node() -> None:
    with pytest.raises(ClusterError, match=r"num_workers = 1 with .* have room for 0 such workers"):
        check_resources(settings(num_workers=1, cpus_per_worker=3), TWO_NODES)
