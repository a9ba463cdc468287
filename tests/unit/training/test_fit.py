"""What the cluster cannot place is said before anything waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.config.data import DataConfig
from slime_ray.config.model import ModelConfig
from slime_ray.config.recipe import Recipe
from slime_ray.config.training import TrainingConfig
from slime_ray.errors import ClusterError
from slime_ray.model.source import ModelSource
from slime_ray.runs import Run
from slime_ray.training.fit import _check_resources
from slime_ray.training.stage import Stage

TWO_NODES = [{"CPU": 2.0}, {"CPU": 2.0}]


def stage(**training: int) -> Stage:
    recipe = Recipe(
        model=ModelConfig(name="m"), data=DataConfig(train=["d"]), training=TrainingConfig.model_validate(training)
    )
    source = ModelSource("m", None, "hash", "content")
    return Stage(recipe, source, "m", None, "data", "model", Run(Path("runs"), "recipe", "0" * 64))


def test_workers_that_fit_are_let_through() -> None:
    _check_resources(stage(num_workers=4), TWO_NODES)
    _check_resources(stage(num_workers=2, cpus_per_worker=2), TWO_NODES)


def test_more_than_all_nodes_have_together() -> None:
    with pytest.raises(ClusterError, match=r"num_workers = 5 with 1 CPU each .* the Ray cluster has 4; lower"):
        _check_resources(stage(num_workers=5), TWO_NODES)


def test_a_worker_larger_than_every_node() -> None:
    with pytest.raises(ClusterError, match=r"num_workers = 1 with .* have room for 0 such workers"):
        _check_resources(stage(num_workers=1, cpus_per_worker=3), TWO_NODES)
