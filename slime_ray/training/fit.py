"""A run from its lease to its manifest: trained in this process or on Ray's workers, shown, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from slime_ray import lease as leases
from slime_ray.checkpoints import newest_step
from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import total_steps
from slime_ray.data.token_cache import PreparedData
from slime_ray.errors import ClusterError, GuardError, Interrupted, SlimeRayError
from slime_ray.lease import Lease
from slime_ray.runs import Run
from slime_ray.storage import disk_errors
from slime_ray.training.cluster import connected
from slime_ray.training.progress import Progress
from slime_ray.training.signals import on_signal
from slime_ray.training.stage import Stage, prepare, resolve
from slime_ray.training.workers import train_on_workers

if TYPE_CHECKING:
    from slime_ray.training.loop import Ending

# What follows a run while it is trained; it is given what asks the run to stop after its step.
Follow = Callable[[Callable[[], None]], AbstractContextManager[object]]


def train(recipe: Recipe, *, wait: bool = False) -> Run:
    """Train a recipe and return its run: a finished one as it is, one that was begun from its last checkpoint.

    `training.num_workers` is the number of Ray Train workers; 0 trains in this process and loads no Ray. Without a
    cluster at hand (RAY_ADDRESS, or one on this machine) a local one is started and stopped again.

    Args:
        recipe: what to train.
        wait: where another process trains this run, wait for it; otherwise leave.

    Raises:
        SlimeRayError: a mistake of the user, also one found inside a worker; the cluster cannot place the workers; the
            guard stopped the run; another process holds it.
        Interrupted: SIGTERM or Ctrl-C came; the run was checkpointed.
    """
    stage = resolve(recipe)
    run = stage.run
    if run.manifest() is not None:
        return run
    with disk_errors(run.folder):
        return train_prepared(stage, prepare(stage), wait=wait)


def train_prepared(
    stage: Stage, prepared: PreparedData, *, wait: bool = False, follow: Follow | None = None, beside: int = 1
) -> Run:
    """Train a stage whose rows are tokens already, as `train` does.

    Args:
        stage: what to train.
        prepared: its rows.
        wait: where another process trains this run, wait for it.
        follow: what follows the run instead of showing on standard error how far it is.
        beside: runs that are trained at once, this one among them; they share a machine's memory.

    Raises:
        SlimeRayError: as `train`.
    """
    run = stage.run
    with leases.acquire(run.lease, what=run.name, wait=wait, say=_say) as lease:
        if run.manifest() is None:  # whoever was waited for may have finished it
            _refuse_stopped(stage)
            told = len(run.events())
            run.begin(stage.recipe, stage.lineage(), keep=newest_step(run) is not None)
            try:
                ending = _watched(stage, prepared, lease, told=told, follow=follow, beside=beside)
            except SlimeRayError as error:
                if lease.wish != "lost":  # else the folder is another's
                    _end_badly(run, lease, error)
                raise
            _raise_unfinished(stage, ending)
    return run


def _end_badly(run: Run, lease: Lease, error: SlimeRayError) -> None:
    """Note why a run failed; of one that has nothing to go on from, no folder stays."""
    if run.metrics() or newest_step(run) is not None:
        run.note("failed", str(error))
    else:
        run.withdraw()
        lease.forget()


def _watched(
    stage: Stage, prepared: PreparedData, lease: Lease, *, told: int, follow: Follow | None, beside: int
) -> Ending:
    """Train, showing how far it is and what happens after the first `told` events, and heeding the wish to stop."""

    def stop() -> None:
        _say("stopping after this step, with a checkpoint; once more ends it at once")
        lease.ask("stop")

    steps = total_steps(stage.mixture(prepared), stage.recipe.training)
    following = Progress(stage.run, steps=steps, told=told) if follow is None else follow(stop)
    with following, on_signal(stop):
        if stage.recipe.training.num_workers == 0:
            return _train_here(stage, prepared, lease, beside)
        # Connecting, Ray takes SIGTERM for itself.
        with connected(stage.recipe.training), on_signal(stop):
            return train_on_workers(stage, prepared.folder, lease, beside=beside, say=_say)


def _raise_unfinished(stage: Stage, ending: Ending) -> None:
    from slime_ray.training.loop import Ending

    run = stage.run
    if ending is Ending.INTERRUPTED:
        step = newest_step(run)
        run.note("interrupted", "", step=step)
        raise Interrupted(f"{run.name}: stopped after step {step}; the same command goes on from there")
    if ending is Ending.STOPPED:
        _refuse_stopped(stage)


def _refuse_stopped(stage: Stage) -> None:
    """Say why the guard stopped a run; with another `guard.action` the run may go on.

    Raises:
        GuardError: the guard stopped the run.
    """
    run, event = stage.run, stage.run.ending()
    if stage.recipe.guard.action != "stop" or event is None or event.kind != "stopped":
        return
    best = f". Its best checkpoint is kept as a model in {run.best}" if run.best.exists() else ""
    raise GuardError(
        f"{run.name} was stopped by the guard after step {event.step}: {event.message}{best}; "
        "with guard.action=warn the same command goes on"
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _train_here(stage: Stage, prepared: PreparedData, lease: Lease, beside: int) -> Ending:
    import torch

    from slime_ray.training.worker import run_stage

    use_gpu = stage.recipe.training.use_gpu
    if use_gpu and not torch.cuda.is_available():
        raise ClusterError("training.use_gpu = true, but torch finds no GPU on this machine; set it to false")
    device = torch.device("cuda" if use_gpu else "cpu")
    return run_stage(stage, prepared, lease, device=device, sharing=beside, report=lambda _: None)
