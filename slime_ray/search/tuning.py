"""The one file of studies that knows Ray Tune: trials side by side, until all that is wanted has been tried."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from slime_ray.config.training import TrainingConfig
from slime_ray.errors import ClusterError, Interrupted, StudyError
from slime_ray.lease import Lease
from slime_ray.search.bench import Bench
from slime_ray.search.course import Course, Next
from slime_ray.search.shown import Shown
from slime_ray.search.trial import carry_out
from slime_ray.search.trials import Ledger, distinct
from slime_ray.search.weights import Weights
from slime_ray.storage import disk_errors, remove
from slime_ray.training.cluster import (
    await_room,
    check_resources,
    connected,
    living_nodes,
    places,
    worker_resources,
)
from slime_ray.training.signals import on_signal

# A trial that failed without a user's mistake in it, such as one whose process was killed, is tried once more.
_RETRIES = 1
_LOOK_S = 0.2
# Between looks at whether the cluster, which may have lost nodes, still has room for a trial.
_ROOM_LOOK_S = 10.0
_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_trials(bench: Bench, ledger: Ledger, wanted: Next, *, lease: Lease, weights: Weights, shown: Shown) -> None:
    """Run what the ledger lacks, as many trials at once as the cluster has room for.

    Trials that were begun by a command that is gone come first, and go on from their checkpoints.

    Args:
        bench: what the trials share.
        ledger: of the study; is written.
        wanted: what is to be tried.
        lease: of the study; trials stop when it asks for that or is gone.
        weights: what is kept of the trials' runs.
        shown: is told what becomes of trials.

    Raises:
        ClusterError: the cluster has no room for one trial.
        StorageError: a disk is full or cannot be written; the trial that met it goes on with the same command.
        Interrupted: SIGTERM or Ctrl-C came; what ran was checkpointed.
    """
    scratch = bench.folder / f".tune-{uuid.uuid4().hex[:8]}"
    course = Course(bench, ledger, wanted, lease, weights, shown, scratch)
    if not course.left():
        weights.tidy(ledger.trials(), wait=True)
        return
    course.check_stopping()
    settings = bench.recipe.training

    def stop() -> None:
        shown.say("stopping all trials after their step, with a checkpoint; once more ends them at once")
        course.halt(Interrupted(f"{bench.name}: stopped; the same command goes on"))

    with on_signal(stop), connected(settings), on_signal(stop), disk_errors(bench.folder, setting="studies_dir"):
        await_room(
            settings,
            lambda: room(settings, living_nodes()),
            say=shown.say,
            stopped=lambda: course.halted is not None or lease.wish == "lost",
        )
        if course.halted is not None:
            raise course.halted
        at_once = room(settings, living_nodes())
        course.at_once = min(at_once, bench.concurrent or at_once)
        try:
            _tune(course)
        finally:
            remove(scratch)
    weights.tidy(ledger.trials(), wait=True)
    if course.halted is not None:
        raise course.halted


def room(settings: TrainingConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials that a cluster has room for at once.

    Args:
        settings: of each trial.
        nodes: resources of each node.

    Raises:
        ClusterError: not even for one.
    """
    needed = worker_resources(settings)
    found = places(needed, nodes)
    if settings.num_workers == 0:
        if found == 0:
            largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in needed}
            raise ClusterError(
                f"a trial takes {needed} (training.cpus_per_worker, training.use_gpu), and no node of the Ray cluster "
                f"has that; at most a node has {largest}"
            )
        return found
    check_resources(settings, nodes)
    return found // settings.fewest_workers


def _tune(course: Course) -> None:
    """Have Ray Tune run trials, in a thread of its own, so that this one hears signals."""
    for name, value in _TUNE.items():
        os.environ[name] = value
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            # Of Ray's own files, which its driver alone writes: trials report no checkpoint.
            with tempfile.TemporaryDirectory(prefix="slime-ray-", ignore_cleanup_errors=True) as folder:
                _tuner(course, folder).fit()
        except BaseException as error:  # raised again below, in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    thread.start()
    looked = roomy = time.monotonic()
    while thread.is_alive():
        thread.join(_LOOK_S)
        if course.lease.wish == "lost":
            course.halt(
                StudyError(f"{course.bench.name}: another command has taken this study over, and goes on with it")
            )
        if time.monotonic() - looked > _ROOM_LOOK_S and course.halted is None:
            looked = time.monotonic()
            if (problem := _no_room(course)) is None:
                roomy = looked
            elif looked - roomy > 60 * course.bench.recipe.training.wait_minutes:
                course.halt(problem)
    for error in raised:
        raise error


def _no_room(course: Course) -> ClusterError | None:
    """Why a cluster that lost its nodes would have trials wait for ever."""
    try:
        room(course.bench.recipe.training, living_nodes())
    except ClusterError as error:
        return error
    return None


def _tuner(course: Course, folder: str) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(carry_out, _taken(course.bench.recipe.training)),
        tune_config=tune.TuneConfig(
            search_alg=_Following(course),
            scheduler=_scheduler(course),
            num_samples=-1,
            max_concurrent_trials=course.at_once,
            # Loading torch takes longer than a short trial.
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder,
            verbose=0,
            stop=_Halted(course),
            callbacks=[_Noting(course)],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
        ),
    )


def _taken(settings: TrainingConfig) -> dict[str, float]:
    """What a trial's process takes: without workers what one would; beside workers next to nothing."""
    return worker_resources(settings) if settings.num_workers == 0 else {"CPU": 0, "memory": 1}


def _scheduler(course: Course) -> TrialScheduler:
    """Asynchronous successive halving, told what stopped and finished trials of earlier commands had reached."""
    stopping = course.bench.stopping
    if stopping is None:
        return FIFOScheduler()
    scheduler = _Halving(
        course,
        time_attr="step",
        metric=stopping.metric,
        mode="max",
        grace_period=stopping.first,
        max_t=max(course.steps(), stopping.first),
        reduction_factor=stopping.factor,
        stop_last_trials=False,
    )
    nobody: Any = None
    for trial in distinct(course.ledger.trials()):
        told: Any = SimpleNamespace(trial_id=f"ledger {trial.number}", config=None)
        scheduler.on_trial_add(nobody, told)
        for step, value in trial.curve:
            scheduler.on_trial_result(nobody, told, {"step": step, stopping.metric: value})
    return scheduler


class _Halving(AsyncHyperBandScheduler):
    """Has trials that fall behind stop by themselves: killed, they would leave workers and half-written files."""

    def __init__(self, course: Course, **options: Any) -> None:
        super().__init__(**options)
        self.course = course

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As the superclass decides, but for those that it would kill."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and trial.config is not None:
            assert self.course.bench.stopping is not None
            value = result[self.course.bench.stopping.metric]
            with self.course.guarded():
                self.course.fell_behind(trial.config["number"], result["step"], value)
        return TrialScheduler.CONTINUE


class _Halted(tune.Stopper):
    """Ends a halted study once no trial runs: one that waits for room might do so for ever."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials stop by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.course.halted is not None and not self.course.placed


class _Following(Searcher):
    """Gives Ray Tune the trials that the course wants, one after another."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.course = course

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or None where what is wanted next depends on those that still run."""
        found = None
        with self.course.guarded():
            found = self.course.next()
        if found is not None:
            return {"number": found[0].number, "order": found[1]}
        return None if self.course.running() and self.course.halted is None else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback notes it."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """No command goes on with Ray Tune's own files."""


class _Noting(tune.Callback):
    """Tells the course what Ray Tune sees of trials."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self.course.guarded():
            self.course.started(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, stopping = trial.config["number"], self.course.bench.stopping
        with self.course.guarded():
            if "ending" in result:
                self.course.ended(number, result["ending"], result["reason"])
            elif stopping is not None and stopping.metric in result:
                self.course.evaluated(number, result["step"], result[stopping.metric])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self.course.guarded():
            self.course.retried(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self.course.guarded():
            self.course.lost(trial.config["number"], trial.get_pickled_error() or trial.get_error())
