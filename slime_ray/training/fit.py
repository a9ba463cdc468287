"""The one file that knows Ray Train: a stage on its workers, or in this process, whatever befalls them."""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray import lease as leases
from slime_ray.checkpoints import read_checkpoints
from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import total_steps
from slime_ray.data.token_cache import PreparedData, open_tokens
from slime_ray.errors import ClusterError, GuardError, Interrupted, RunError, SlimeRayError
from slime_ray.lease import Lease, LeaseReader
from slime_ray.runs import Run
from slime_ray.storage import disk_errors
from slime_ray.training.cluster import (
    await_room,
    check_resources,
    connected,
    gauges,
    living_nodes,
    look_again,
    preemption_watch,
    reserved,
    settle,
    worker_resources,
)
from slime_ray.training.progress import Progress
from slime_ray.training.signals import on_signal
from slime_ray.training.stage import Stage, prepare, resolve

if TYPE_CHECKING:
    from slime_ray.training.loop import Ending

# What follows a run while it is trained; it is given what asks the run to stop after its step.
Follow = Callable[[Callable[[], None]], AbstractContextManager[object]]

# Between looks at whether elastic workers could be more.
RESIZE_LOOK_S = 60.0
# Between looks at what the main thread waits for, so that it hears signals.
_LOOK_S = 0.2


class LostWorkers(Exception):  # noqa: N818, what happened, not whose mistake
    """Workers died, froze or lost touch; `ranks` says what befell each."""

    def __init__(self, ranks: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"worker {rank} {fate}" for rank, fate in sorted(ranks.items())))


class Preempted(Exception):  # noqa: N818, as above
    """The cluster took nodes away, as it had announced."""


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
            run.begin(stage.recipe, stage.lineage(), keep=_newest_step(run) is not None)
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
    if run.metrics() or _newest_step(run) is not None:
        run.note("failed", str(error))
    else:
        run.withdraw()
        lease.forget()


def _newest_step(run: Run) -> int | None:
    complete, _ = read_checkpoints(run.checkpoints, run=run.hash)
    return complete[-1].step if complete else None


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
            return _train_on_ray(stage, prepared.folder, lease, beside)


def _raise_unfinished(stage: Stage, ending: Ending) -> None:
    from slime_ray.training.loop import Ending

    run = stage.run
    if ending is Ending.INTERRUPTED:
        step = _newest_step(run)
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


def _train_on_ray(stage: Stage, tokens: Path, lease: Lease, beside: int) -> Ending:
    """Train on Ray's workers; when some are lost, go on from the last checkpoint with new ones.

    Raises:
        ClusterError: workers were lost more often than `training.max_failures` allows.
    """
    from slime_ray.training.loop import Ending

    settings, lost = stage.recipe.training, 0

    def stopped() -> bool:
        return lease.wish in ("stop", "lost")

    while True:
        await_room(settings, lambda: check_resources(settings, living_nodes()), say=_say, stopped=stopped)
        if stopped():
            if lease.wish == "lost":
                raise RunError(f"{stage.run.name}: another process holds this run now; this command leaves it alone")
            if _newest_step(stage.run) is None:
                raise Interrupted(
                    f"{stage.run.name}: stopped before its first checkpoint; the same command begins again"
                )
            return Ending.INTERRUPTED
        try:
            return _attempt(stage, tokens, lease, beside)
        except LostWorkers as error:
            lost += 1
            stage.run.note("worker lost", str(error))
            allowed = settings.max_failures
            if lost > allowed:
                raise ClusterError(
                    f"{stage.run.name}: {error}. That was failure {lost} of this command, training.max_failures = "
                    f"{allowed}; look at these workers' nodes, the same command goes on from the last checkpoint"
                ) from None
            _say(f"{error}; failure {lost} of {allowed} allowed, going on from the last checkpoint")
            settle()
        except Preempted as error:  # no failure: it was announced, and a checkpoint was written
            stage.run.note("warning", str(error))
        if isinstance(settings.num_workers, tuple) and not stopped():
            look_again()


def _attempt(stage: Stage, tokens: Path, lease: Lease, beside: int) -> Ending:
    """One group of workers, to the loop's end or theirs.

    Raises:
        LostWorkers: some died, froze or lost touch.
        SlimeRayError: what the user got wrong, as it was raised inside a worker.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from slime_ray.training.loop import Ending

    settings = stage.recipe.training
    # Of Ray's own files, which its controller alone writes, on this node: workers report no checkpoint.
    with tempfile.TemporaryDirectory(prefix="slime-ray-", ignore_cleanup_errors=True) as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "stage": stage,
                "tokens": tokens,
                "lease": (lease.number, lease.token),
                "beside": beside,
            },
            scaling_config=ScalingConfig(
                num_workers=settings.num_workers,
                elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
                use_gpu=settings.use_gpu,
                resources_per_worker=worker_resources(settings),
            ),
            # Our run folder is the only truth; Ray gets metrics, no checkpoints, and a fresh name each time.
            run_config=RunConfig(
                name=f"{Path(stage.run.name).name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        return Ending(_fit(trainer, stage, lease))


def _fit(trainer: Any, stage: Stage, lease: Lease) -> int:
    """Run a trainer in a thread of its own, so that this one hears signals; Ray then leaves them alone too."""
    from ray.train import PreemptionError, WorkerGroupError

    value: list[int] = []
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            value.append(trainer.fit().return_value)
        except BaseException as error:  # raised again below, in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    with reserved(stage.run.folder / "reservation", trainer), preemption_watch(lambda: lease.ask("checkpoint")):
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
    for error in raised:
        if isinstance(error, PreemptionError):
            raise Preempted(f"the cluster took away the nodes of workers {error.preemption_info.preempted_ranks}")
        if isinstance(error, WorkerGroupError):
            _raise_cause(error.worker_failures)
        raise error
    return value[0]


def _raise_cause(failures: Mapping[int, Exception]) -> None:
    """Tell the user's mistakes, the program's and lost workers apart: only the last are worth another try."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    from slime_ray.training.collective import LostTouchError

    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}
    fates = {}
    for rank, cause in sorted(causes.items()):
        if isinstance(cause, SlimeRayError):
            raise cause from None
        if isinstance(cause, WorkerHealthCheckTimeoutError):
            fates[rank] = "hangs and did not answer"
        elif isinstance(cause, WorkerHealthCheckFailedError | RayActorError):
            fates[rank] = "died"
        elif isinstance(cause, LostTouchError):
            fates[rank] = "lost touch with the others"
    programs = [cause for rank, cause in causes.items() if rank not in fates]
    if programs:
        raise programs[0]
    raise LostWorkers(fates)


def _worker(config: dict[str, Any]) -> int:
    import ray.train
    import torch
    from ray.train.torch import get_device

    from slime_ray.training import pulse
    from slime_ray.training.worker import run_stage

    stage: Stage = config["stage"]
    settings, run = stage.recipe.training, stage.run
    rank = ray.train.get_context().get_world_rank()
    _see_folder(run, rank)
    torch.set_num_threads(settings.cpus_per_worker)
    pulse.watch(60 * settings.hang_minutes, say=lambda sentence: run.note("warning", f"worker {rank}, {sentence}"))
    show = gauges(run.name) if rank == 0 else lambda _: None

    def report(metrics: dict[str, float]) -> None:
        show(metrics)
        # A report is a barrier over all workers: only evaluations are worth one.
        if any(name.startswith("eval_") for name in metrics):
            with pulse.waiting():
                ray.train.report(metrics)

    device: Any = get_device()
    orders = LeaseReader(run.lease, *config["lease"])
    sharing = config["beside"] * ray.train.get_context().get_local_world_size()
    return run_stage(stage, open_tokens(config["tokens"]), orders, device=device, sharing=sharing, report=report)


def _see_folder(run: Run, rank: int) -> None:
    """See that this node has the run's folder.

    Raises:
        ClusterError: it lies on another node's disk.
    """
    if run.lineage() is None:
        raise ClusterError(
            f"runs_dir = {str(run.runs_dir)!r}: worker {rank} on node {socket.gethostname()} does not see {run.name} "
            "there; expected a folder that all nodes share, or a URL such as s3://bucket/runs"
        )
