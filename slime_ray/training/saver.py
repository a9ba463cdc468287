"""When a checkpoint is written, which are kept, and the thread that writes them while training goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

from slime_ray.checkpoints import best, discard, folder_of, read_checkpoints, superfluous
from slime_ray.config.checkpoint import CheckpointConfig
from slime_ray.runs import Run
from slime_ray.storage import disk_errors
from slime_ray.training.checkpoint import LoopState, Snapshot, take_snapshot, write_checkpoint
from slime_ray.training.pulse import waiting


class Saver:
    """Writes a run's checkpoints; used by the first worker alone."""

    def __init__(self, run: Run, settings: CheckpointConfig, *, may_commit: Callable[[], bool]) -> None:
        """Args: the run, when and what to keep, and what is asked before a checkpoint is completed."""
        self._run = run
        self._settings = settings
        self._may_commit = may_commit
        self._written_at = time.monotonic()
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        existing, _ = read_checkpoints(run.checkpoints, run=run.hash)
        found = best(existing, settings)
        self._best = found.manifest.evaluation[settings.best_metric] if found else None

    def due(self, step: int, evaluation: dict[str, float]) -> bool:
        """Whether a checkpoint should be written after a step: it is time, or its evaluation is the best so far."""
        if self._is_best(evaluation):
            return True
        if self._thread is not None and self._thread.is_alive():
            return False  # the disk is slower than the interval: the next step will ask again
        settings, minutes = self._settings, (time.monotonic() - self._written_at) / 60
        by_steps = settings.every_steps is not None and step - (self._step or 0) >= settings.every_steps
        return by_steps or minutes >= settings.every_minutes

    def save(self, state: LoopState, *, lines: Sequence[dict[str, float]], evaluation: dict[str, float]) -> None:
        """Copy the state and begin to write it; an earlier checkpoint that is still being written is waited for.

        Raises:
            StorageError: an earlier one could not be written.
        """
        self.wait()
        if self._step == state.step:
            return
        snapshot = take_snapshot(state, lines=lines, evaluation=evaluation)
        if self._is_best(evaluation):
            self._best = evaluation[self._settings.best_metric]
        self._step, self._written_at = state.step, time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return once nothing is being written any more.

        Raises:
            StorageError: it could not be written.
        """
        self.join()
        self.check()

    def join(self) -> None:
        """Return once nothing is being written any more, whatever became of it."""
        if self._thread is not None:
            with waiting():
                self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what went wrong in the writing thread, if anything did."""
        if self._error is not None:
            raise self._error

    def resumed_at(self, step: int) -> None:
        """The state came from the checkpoint of this step."""
        self._step = step

    def _is_best(self, evaluation: dict[str, float]) -> bool:
        value = evaluation.get(self._settings.best_metric)
        if value is None or not math.isfinite(value):
            return False
        sign = 1 if self._settings.best_is == "lowest" else -1
        return self._best is None or sign * value < sign * self._best

    def _write(self, snapshot: Snapshot) -> None:
        folder = folder_of(self._run.checkpoints, snapshot.step)
        try:
            with disk_errors(folder):
                if not self._may_commit():
                    return
                done = write_checkpoint(snapshot, folder, run=self._run.hash, may_commit=self._may_commit)
                if done:
                    self._discard_superfluous()
        except Exception as error:  # kept for the training thread, which raises it
            self._error = error

    def _discard_superfluous(self) -> None:
        existing, _ = read_checkpoints(self._run.checkpoints, run=self._run.hash)
        for checkpoint in superfluous(existing, self._settings):
            discard(checkpoint.folder)
