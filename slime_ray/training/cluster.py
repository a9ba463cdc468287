"""The Ray cluster that training runs on: reaching it, what it has room for, what it takes away, what it shows.

Ray keeps some of this private; it is here, so that a new version of Ray is checked in one place.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slime_ray.config.training import TrainingConfig
from slime_ray.errors import ClusterError
from slime_ray.storage import remove, write_text

# Between looks at which nodes the cluster is about to take away.
_PREEMPTION_LOOK_S = 5.0
_CONNECT_S = 2.0
# Between looks at whether a cluster has grown.
_ROOM_LOOK_S = 2.0
# For a node that counts as alive to answer, or to be found dead: Ray needs some 20 s for that.
_SETTLED_S = 60.0
# Gauges by the metric that they show.
_GAUGES = {
    "step": ("slime_ray_step", "optimizer steps done"),
    "loss": ("slime_ray_loss", "loss of the last logged step"),
    "tokens_per_second": ("slime_ray_tokens_per_second", "tokens through the body a second, all workers"),
    "mean_logps/chosen": ("slime_ray_mean_logps_chosen", "chosen answers, nats per token, last logged step"),
    "eval_mean_logps/chosen": ("slime_ray_eval_mean_logps_chosen", "held-out chosen answers, nats per token"),
}


@contextmanager
def connected(settings: TrainingConfig) -> Iterator[None]:
    """Ray, connected to the cluster at hand; one that is started here is stopped again."""
    # Ray finds a frozen worker by itself, once it is told how long to wait; it reads this when a fit begins.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(60 * settings.hang_minutes)
    # A report and the end of a run wait for its next look, which is every two seconds otherwise.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with at_hand():
        yield


@contextmanager
def at_hand() -> Iterator[None]:
    """Ray: connected already, at RAY_ADDRESS, on this machine, or, where there is none, started and stopped again."""
    import ray

    if ray.is_initialized():
        yield
        return
    # What `ray start` noted on this machine outlives a cluster that was killed, and Ray would wait for it.
    own = {} if "RAY_ADDRESS" in os.environ or _noted_cluster_lives() else {"address": "local"}
    given = os.environ.get("RAY_ADDRESS")
    named = "the Ray cluster of this machine" if given is None else f"RAY_ADDRESS = {given!r}"
    with _initialized({"include_dashboard": False, **own}, named=named):
        yield


def _noted_cluster_lives() -> bool:
    from ray._private.utils import read_ray_address

    host, _, port = (read_ray_address() or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def joined(address: str) -> Iterator[None]:
    """The cluster at an address, such as auto or 10.0.0.1:6379.

    Raises:
        ClusterError: none answers there.
    """
    with _initialized({"address": address}, named=f"--address {address}"):
        yield


@contextmanager
def _initialized(options: dict[str, Any], *, named: str) -> Iterator[None]:
    import ray
    from ray.exceptions import RayError

    address = options.get("address") or os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{named}: this is the address of a dashboard, which jobs are submitted to; expected auto or one such as "
            "10.0.0.1:6379"
        )
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError as error:
        raise ClusterError(f"{named}: no Ray cluster answers there ({error})") from None
    except (ValueError, RuntimeError, RayError) as error:  # no address, another version, no token
        raise ClusterError(f"{named}: cannot be joined ({' '.join(str(error).split())[:500]})") from None
    try:
        yield
    finally:
        ray.shutdown()


def living_nodes() -> list[Mapping[str, float]]:
    """The resources of each node that is alive and stays."""
    import ray
    from ray._private.state import state

    leaving = state.get_draining_nodes()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def free_resources() -> list[Mapping[str, float]]:
    """What each node has free."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


@contextmanager
def preemption_watch(notice: Callable[[], None]) -> Iterator[None]:
    """Inside, `notice` is called whenever the cluster says that it will take a node away."""
    from ray._private.state import state
    from ray.exceptions import RayError

    ended = threading.Event()

    def watch() -> None:
        known: set[str] = set()
        while not ended.wait(_PREEMPTION_LOOK_S):
            with suppress(RayError, RuntimeError, ConnectionError):  # a head node that is away may come back
                draining = set(state.get_draining_nodes())
                if draining - known:
                    notice()
                known = draining

    thread = threading.Thread(target=watch, name="preemption", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def reserved(note: Path, trainer: Any) -> Iterator[None]:
    """Around a fit: take back what a command that was killed had reserved, and note what this one does.

    Ray keeps the nodes of a killed command's elastic workers reserved for three minutes.
    """
    if not trainer.scaling_config.elasticity_enabled:
        yield
        return
    if note.exists():
        _coordinator("cancel_request", note.read_text())
    write_text(note, f"train-{trainer.train_run_context.run_id}")
    yield
    remove(note)


def look_again() -> None:
    """Have Ray see at once which nodes are left, instead of starting workers on those that are gone."""
    _coordinator("get_reserved_resources", "none", recompute=True)


def _coordinator(method: str, *arguments: Any, **options: Any) -> None:
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    ray.get(getattr(get_or_create_autoscaling_coordinator(), method).remote(*arguments, **options))


def settle() -> None:
    """Return once every node that counts as alive has answered or is known to be dead.

    A node that is gone without a word still counts for a while, and Ray would wait for workers on it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def answer() -> None:
        """Nothing but an answer."""

    asked = [
        answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    ]
    ray.wait(asked, num_returns=len(asked), timeout=_SETTLED_S)


def gauges(run: str) -> Callable[[Mapping[str, float]], None]:
    """What shows a run's metrics on the node's Prometheus endpoint (`ray[default]` serves it)."""
    from ray.util.metrics import Gauge

    made = {metric: Gauge(name, text, tag_keys=("run",)) for metric, (name, text) in _GAUGES.items()}

    def show(metrics: Mapping[str, float]) -> None:
        for metric, gauge in made.items():
            if metric in metrics:
                gauge.set(metrics[metric], tags={"run": run})

    return show


def worker_resources(settings: TrainingConfig) -> dict[str, float]:
    """What each worker takes of its node, by Ray's names."""
    return {"CPU": settings.cpus_per_worker, **({"GPU": settings.gpus_per_worker} if settings.use_gpu else {})}


def places(needed: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """Workers that nodes have room for, by what each takes of its node."""
    # A tenth of a GPU fits ten times, though 1 // 0.1 is 9.
    return sum(int(min(node.get(kind, 0) / each + 1e-6 for kind, each in needed.items())) for node in nodes)


def await_room(
    settings: TrainingConfig,
    check: Callable[[], object],
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Return once the nodes have room for a run's workers; a cluster that can grow is asked to, meanwhile.

    Args:
        settings: of the run; `wait_minutes` is how long.
        check: raises ClusterError while there is no room.
        say: is told once that it waits, and for what.
        stopped: whether nobody waits any more.

    Raises:
        ClusterError: there is no room, and it was waited for long enough.
    """
    from ray.autoscaler.sdk import request_resources

    until, told = time.monotonic() + 60 * settings.wait_minutes, False
    try:
        while not stopped():
            try:
                check()
                return
            except ClusterError as error:
                if time.monotonic() >= until:
                    raise
                if not told:
                    say(f"waiting up to {settings.wait_minutes:g} minutes (training.wait_minutes) for room: {error}")
                told = True
            # What is asked for stands until the next one asks: another job may have.
            request_resources(bundles=[worker_resources(settings)] * max(1, settings.fewest_workers))
            time.sleep(_ROOM_LOOK_S)
    finally:
        if told:
            with suppress(RuntimeError, ConnectionError):  # what is in flight says more
                request_resources(num_cpus=0)


def check_resources(settings: TrainingConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Say at once what would otherwise wait for ever.

    Raises:
        ClusterError: the nodes have too few CPUs or GPUs for the workers, together or each for itself.
    """
    workers = settings.fewest_workers
    needed = worker_resources(settings)
    cluster = {kind: sum(node.get(kind, 0) for node in nodes) for kind in needed}
    for kind, each in needed.items():
        if workers * each > cluster[kind]:
            setting = "training.cpus_per_worker" if kind == "CPU" else "training.use_gpu"
            raise ClusterError(
                f"training.num_workers = {workers} with {each:g} {kind} each ({setting}) need {workers * each:g} "
                f"{kind}, but the Ray cluster has {cluster[kind]:g}; lower training.num_workers or add nodes"
            )
    room = places(needed, nodes)
    if workers > room:
        raise ClusterError(
            f"training.num_workers = {workers} with {needed} each: the nodes of the Ray cluster have room for {room} "
            "such workers; lower training.num_workers or training.cpus_per_worker, or add nodes"
        )
