"""What the process of one trial does: train, tell Ray Tune of evaluations, score what came out."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from slime_ray.errors import ClusterError, Interrupted, SlimeRayError, StorageError
from slime_ray.lease import LeaseReader
from slime_ray.storage import disk_errors, is_local, take_as_seen, write_json
from slime_ray.training.cluster import worker_resources
from slime_ray.training.fit import train_prepared
from slime_ray.training.progress import NewMetrics
from slime_ray.training.stage import Stage

_LOOK_S = 0.25
# Behind a URL every look is a request.
_REMOTE_LOOK_S = 2.0
_WAIT_S = 2.0

# How a trial's process ended. "interrupted": it was asked to stop; "disk": no disk that a study writes to is to be
# tried again with other settings.
Ending = Literal["finished", "failed", "interrupted", "disk"]


@dataclass(frozen=True, slots=True, repr=False)
class Scoring:
    """What is measured of a model: held-out pairs, and answers of so many tokens (0: none)."""

    entry: str
    max_length: int
    max_new_tokens: int
    runs_dir: Path

    def into(self, path: Path, model: str) -> None:
        """Score a model and write that down.

        Raises:
            SlimeRayError: the model or the pairs cannot be used.
        """
        from slime_ray.training.scoring import score

        take_as_seen()
        options = {"max_length": self.max_length, "max_new_tokens": self.max_new_tokens}
        with disk_errors(self.runs_dir):
            found = score(model, self.entry, runs_dir=self.runs_dir, **options)
        with disk_errors(path, setting="studies_dir"):
            write_json(path, asdict(found))


@dataclass(frozen=True, slots=True, repr=False)
class Order:
    """What a trial's process is to do.

    Attributes:
        stage: what to train; its paths are absolute.
        tokens: its rows.
        steps: that the run has.
        metric: of `eval_` lines, that Ray Tune is told; None: it is told nothing.
        lease: of the study: folder, number and token; who holds it may ask for a stop.
        scoring: what is measured of the trained model.
        score: the file for it.
        stop: the file that is made where this trial alone is to stop.
        start: the model that trials start from, and the file for its score.
        beside: trials at once, which share a machine's memory.
    """

    stage: Stage
    tokens: Path
    steps: int
    metric: str | None
    lease: tuple[Path, int, str]
    scoring: Scoring
    score: Path
    stop: Path
    start: tuple[str, Path]
    beside: int


def carry_out(config: dict[str, Any]) -> None:
    """Do what `config["order"]` says and report the ending; this is what Ray Tune calls.

    A user's mistake is reported, since it would be one at the next attempt too; whatever else is raised has Tune try
    again.
    """
    from ray import tune

    ending, reason = _ending(config["order"])
    tune.report({"ending": ending, "reason": reason})


def _ending(order: Order) -> tuple[Ending, str]:
    from slime_ray.data.token_cache import open_tokens

    take_as_seen()
    _see_study(order.lease[0])
    orders = _orders(*order.lease)
    run = order.stage.run
    if orders.look() in ("stop", "lost"):
        return "interrupted", ""
    try:
        with disk_errors(run.folder):
            _score(order, *order.start)
            if run.manifest() is None:
                train_prepared(
                    order.stage,
                    open_tokens(order.tokens),
                    wait=True,
                    follow=functools.partial(_Follower, order, orders),
                    beside=order.beside,
                )
            else:  # by a process that was killed before it could say so
                _Follower(order, orders, lambda: None).tell()
            _score(order, f"run:{run.name}", order.score)
    except Interrupted as error:
        return "interrupted", str(error)
    except StorageError as error:
        return "disk", str(error)
    except ClusterError:  # another attempt may find the workers
        raise
    except SlimeRayError as error:
        return "failed", str(error)
    return "finished", ""


def _see_study(lease: Path) -> None:
    """See that this node has the study's folder.

    Raises:
        ClusterError: it lies on another node's disk.
    """
    if not lease.exists():
        raise ClusterError(
            f"studies_dir: node {socket.gethostname()} does not see {lease.parent}; set it to a folder that all nodes "
            "share, or a URL such as s3://bucket/studies"
        )


@functools.cache
def _orders(folder: Path, number: int, token: str) -> LeaseReader:
    """One reader for all trials that this process carries out: its thread never ends."""
    return LeaseReader(folder, number, token)


class _Follower:
    """A thread that tells Ray Tune of evaluations, and the run of the study's wish to stop."""

    def __init__(self, order: Order, orders: LeaseReader, stop: Callable[[], None]) -> None:
        self._order = order
        self._orders = orders
        self._stop = stop
        self._metrics = NewMetrics(order.stage.run)
        self._told = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):
            self.tell()  # what came since the last look

    def _follow(self) -> None:
        asked = False
        while not self._ended.wait(_LOOK_S if is_local(self._order.stop) else _REMOTE_LOOK_S):
            with suppress(StorageError):  # the run itself tells of it
                if not asked and (self._orders.wish in ("stop", "lost") or self._order.stop.exists()):
                    asked = True
                    self._stop()
                self.tell()

    def tell(self) -> None:
        """Tell of the evaluations since the last time."""
        from ray import tune

        metric = self._order.metric
        for line in self._metrics.lines() if metric is not None else ():
            # At the last step there is nothing left to stop.
            if metric in line and self._told < line["step"] < self._order.steps:
                self._told = int(line["step"])
                tune.report({"step": self._told, metric: line[metric]})


def _score(order: Order, model: str, path: Path) -> None:
    """Score a model once: here, where it was trained, or in a process with what one of its workers had."""
    from slime_ray.training.scoring import load_score

    settings = order.stage.recipe.training
    if path.exists() and load_score(path).model == model:
        return
    if settings.num_workers == 0:
        order.scoring.into(path, model)
        return
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    needed = worker_resources(settings)
    task = ray.remote(
        num_cpus=needed["CPU"],
        num_gpus=needed.get("GPU", 0),
        # Outside of what Tune reserved for the process that asks.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # pyright: ignore[reportArgumentType]
    )(Scoring.into)
    scoring = task.remote(order.scoring, path, model)
    while not ray.wait([scoring], timeout=_WAIT_S)[0]:  # for room too, which a cluster that loses nodes may not have
        if _orders(*order.lease).look() in ("stop", "lost"):
            ray.cancel(scoring)
            raise Interrupted("stopped before it was scored")
    try:
        ray.get(scoring)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, SlimeRayError) else error from None
