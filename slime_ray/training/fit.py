"""The one file that knows Ray Train: a stage on its workers, or in this process."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import total_steps
from slime_ray.data.token_cache import PreparedData, open_tokens
from slime_ray.errors import ClusterError, SlimeRayError
from slime_ray.runs import Run
from slime_ray.training.progress import Progress
from slime_ray.training.stage import Stage, prepare, resolve

if TYPE_CHECKING:
    from ray.train import Result


def train(recipe: Recipe) -> Run:
    """Train a recipe and return its run; a finished run is returned as it is.

    `training.num_workers` is the number of Ray Train workers; 0 trains in this process and loads no Ray. Without a
    cluster at hand (RAY_ADDRESS, or one on this machine) a local one is started and stopped again.

    Raises:
        SlimeRayError: a mistake of the user, also one found inside a worker; the cluster cannot place the workers.
    """
    stage = resolve(recipe)
    if stage.run.manifest() is not None:
        return stage.run
    prepared = prepare(stage)
    steps = total_steps(len(prepared.train), recipe.training)
    stage.run.begin(recipe)
    try:
        with Progress(stage.run, steps=steps):
            if recipe.training.num_workers == 0:
                _train_here(stage, prepared)
            else:
                _train_on_ray(stage, prepared.folder)
    finally:
        stage.run.withdraw()
    return stage.run


def _train_here(stage: Stage, prepared: PreparedData) -> None:
    import torch

    from slime_ray.training.worker import run_stage

    use_gpu = stage.recipe.training.use_gpu
    if use_gpu and not torch.cuda.is_available():
        raise ClusterError("training.use_gpu = true, but torch finds no GPU on this machine; set it to false")
    device = torch.device("cuda" if use_gpu else "cpu")
    run_stage(stage, prepared, device=device, report=lambda _: None)


def _train_on_ray(stage: Stage, tokens: Path) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = stage.recipe.training
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS", "")
            raise ClusterError(f"RAY_ADDRESS = {address!r}: no Ray cluster answers there ({error})") from None
    try:
        _check_resources(stage, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        # Ray wants a folder that every node sees; the runs folder is one.
        with tempfile.TemporaryDirectory(prefix=".ray-", dir=stage.run.runs_dir) as storage:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"stage": stage, "tokens": tokens},
                scaling_config=ScalingConfig(
                    num_workers=settings.num_workers,
                    use_gpu=settings.use_gpu,
                    resources_per_worker=_worker_resources(stage),
                ),
                # Our run folder is the only truth; Ray gets metrics, no checkpoints, and a fresh name each time.
                run_config=RunConfig(
                    name=f"{Path(stage.run.name).name}-{uuid.uuid4().hex[:8]}",
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=0),
                ),
            )
            _fit(trainer)
    finally:
        if started:
            ray.shutdown()


def _fit(trainer: Any) -> Result:
    """Run a trainer; what the user got wrong inside a worker comes back as it was raised there."""
    from ray.train import WorkerGroupError

    try:
        return trainer.fit()
    except WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        mistakes = [cause for cause in causes if isinstance(cause, SlimeRayError)]
        if mistakes:
            raise mistakes[0] from None
        raise


def _worker(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    from ray.train.torch import get_device

    from slime_ray.training.worker import run_stage

    stage: Stage = config["stage"]
    torch.set_num_threads(stage.recipe.training.cpus_per_worker)

    def report(metrics: dict[str, float]) -> None:
        # A report is a barrier over all workers: only evaluations are worth one.
        if any(name.startswith("eval_") for name in metrics):
            ray.train.report(metrics)

    device: Any = get_device()
    run_stage(stage, open_tokens(config["tokens"]), device=device, report=report)


def _worker_resources(stage: Stage) -> dict[str, float]:
    settings = stage.recipe.training
    return {"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})}


def _check_resources(stage: Stage, nodes: Sequence[Mapping[str, float]]) -> None:
    """Say at once what would otherwise wait for ever.

    Raises:
        ClusterError: the nodes have too few CPUs or GPUs for the workers, together or each for itself.
    """
    workers = stage.recipe.training.num_workers
    needed = _worker_resources(stage)
    cluster = {kind: sum(node.get(kind, 0) for node in nodes) for kind in needed}
    for kind, each in needed.items():
        if workers * each > cluster[kind]:
            setting = "training.cpus_per_worker" if kind == "CPU" else "training.use_gpu"
            raise ClusterError(
                f"training.num_workers = {workers} with {each:g} {kind} each ({setting}) need {workers * each:g} "
                f"{kind}, but the Ray cluster has {cluster[kind]:g}; lower training.num_workers or add nodes"
            )
    places = sum(int(min(node.get(kind, 0) // each for kind, each in needed.items())) for node in nodes)
    if workers > places:
        raise ClusterError(
            f"training.num_workers = {workers} with {needed} each: the nodes of the Ray cluster have room for {places} "
            "such workers; lower training.num_workers or training.cpus_per_worker, or add nodes"
        )
