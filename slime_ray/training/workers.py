"""The one file that knows Ray Train: a stage on its workers, whatever befalls them."""

from __future__ import annotations

import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.checkpoints import newest_step
from slime_ray.config.training import TrainingConfig
from slime_ray.data.token_cache import open_tokens
from slime_ray.errors import ClusterError, Interrupted, RunError, SlimeRayError
from slime_ray.lease import Lease, LeaseReader
from slime_ray.runs import Run
from slime_ray.training.cluster import (
    await_room,
    check_resources,
    free_resources,
    gauges,
    living_nodes,
    look_again,
    places,
    preemption_watch,
    reserved,
    settle,
    worker_resources,
)
from slime_ray.training.stage import Stage

if TYPE_CHECKING:
    from slime_ray.training.loop import Ending

# Between looks at whether elastic workers could be more.
RESIZE_LOOK_S = 60.0
# Between looks at what the main thread waits for, so that it hears signals.
_LOOK_S = 0.2


class LostWorkers(Exception):  # noqa: N818, what happened, not whose mistake
    """Workers died, froze or lost touch; `ranks` says what befell each."""

    def __init__(self, ranks: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"worker {rank} {fate}" for rank, fate in sorted(ranks.items())))


class Preempted(Exception):  # noqa: N818, what happened, not whose mistake
    """The cluster took nodes away, as it had announced."""


class Unbegun(Exception):  # noqa: N818, what happened, not whose mistake
    """The run was asked to stop before its workers had begun, and nobody was there to hear it."""


def train_on_workers(stage: Stage, tokens: Path, lease: Lease, *, beside: int, say: Callable[[str], None]) -> Ending:
    """Train on Ray's workers; when some are lost, go on from the last checkpoint with new ones.

    Args:
        stage: what to train.
        tokens: the folder of its rows.
        lease: what says that this run is ours, and by which it is asked to stop.
        beside: runs that are trained at once, this one among them.
        say: is told what happens to workers.

    Raises:
        ClusterError: there is no room for workers.
        Interrupted: the run was asked to stop before its first checkpoint.
        RunError: workers were lost more often than `training.max_failures` allows; another process has this run now.
        SlimeRayError: a mistake of the user, found inside a worker.
    """
    settings, lost = stage.recipe.training, 0

    def stopped() -> bool:
        return lease.wish in ("stop", "lost")

    while True:
        await_room(settings, lambda: check_resources(settings, living_nodes()), say=say, stopped=stopped)
        try:
            if stopped():
                raise Unbegun
            if not lost:
                _tell_if_busy(settings, say)
            return _attempt(stage, tokens, lease, beside)
        except Unbegun:
            return _unbegun(stage.run, lease)
        except LostWorkers as error:
            lost += 1
            stage.run.note("worker lost", str(error))
            allowed = settings.max_failures
            if lost > allowed:
                raise RunError(
                    f"{stage.run.name}: {error}. That was failure {lost} of this command, training.max_failures = "
                    f"{allowed}; look at these workers' nodes, the same command goes on from the last checkpoint"
                ) from None
            say(f"{error}; failure {lost} of {allowed} allowed, going on from the last checkpoint")
            settle()
        except Preempted as error:  # no failure: it was announced, and a checkpoint was written
            stage.run.note("warning", str(error))
        if isinstance(settings.num_workers, tuple) and not stopped():
            look_again()


def _tell_if_busy(settings: TrainingConfig, say: Callable[[str], None]) -> None:
    """Say what Ray waits for in silence: room that others hold."""
    needed = worker_resources(settings)
    if places(needed, free_resources()) < settings.fewest_workers:
        say(
            f"the Ray cluster has no room for training.num_workers = {settings.fewest_workers} with {needed} each just "
            "now; waiting until what holds it has ended"
        )


def _unbegun(run: Run, lease: Lease) -> Ending:
    """How a run ends whose workers did not begin.

    Raises:
        Interrupted: it has nothing to go on from.
        RunError: another process has it now.
    """
    from slime_ray.training.loop import Ending

    if lease.wish == "lost":
        raise RunError(f"{run.name}: another process holds this run now; this command leaves it alone")
    if newest_step(run) is None:
        raise Interrupted(f"{run.name}: stopped before its first checkpoint; the same command begins again")
    return Ending.INTERRUPTED


def _attempt(stage: Stage, tokens: Path, lease: Lease, beside: int) -> Ending:
    """One group of workers, to the loop's end or theirs.

    Raises:
        LostWorkers: some died, froze or lost touch.
        Unbegun: the run was asked to stop before they had begun.
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
    begun = _Begun(stage.run)
    with reserved(stage.run.folder / "reservation", trainer), preemption_watch(lambda: lease.ask("checkpoint")):
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
            # Workers end after their step; where Ray waits for room, there are none.
            if lease.wish in ("stop", "lost") and thread.is_alive() and not begun():
                raise Unbegun
    for error in raised:
        if isinstance(error, PreemptionError):
            raise Preempted(f"the cluster took away the nodes of workers {error.preemption_info.preempted_ranks}")
        if isinstance(error, WorkerGroupError):
            _raise_cause(error.worker_failures)
        raise error
    return value[0]


class _Begun:
    """Whether workers have begun since this was made: they note it in the run."""

    def __init__(self, run: Run) -> None:
        self._run, self._before, self._known = run, len(run.events()), False

    def __call__(self) -> bool:
        events = [] if self._known else self._run.events()[self._before :]
        self._known = self._known or any(event.kind in ("started", "resumed") for event in events)
        return self._known


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
