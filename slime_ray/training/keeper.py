"""What is kept of a run while it is trained: its metrics, its checkpoints, the guard's watch, and the wish to stop.

The first worker alone writes; all workers end at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from slime_ray.checkpoints import MANIFEST, Checkpoint, folder_of, newest_sound
from slime_ray.config.recipe import Recipe
from slime_ray.errors import ConfigError, RunError, SlimeRayError, StorageError
from slime_ray.lease import Wish
from slime_ray.runs import Run
from slime_ray.storage import is_local, remove
from slime_ray.training.checkpoint import LoopState, restore
from slime_ray.training.collective import broadcast, largest, rank, world
from slime_ray.training.guard import findings
from slime_ray.training.loop import Ending
from slime_ray.training.saver import Saver
from slime_ray.training.tensorboard import Board

Report = Callable[[dict[str, float]], None]

# Between two writes of metrics.jsonl behind a URL, where nothing can be added to a file.
METRICS_S = 5.0


class Orders(Protocol):
    """Where the wishes of the lease's holder come from: a `Lease`, or another process's `LeaseReader`."""

    @property
    def wish(self) -> Wish:
        """What was asked for last."""
        ...

    @property
    def wishes(self) -> int:
        """How often something was asked for."""
        ...

    def look(self) -> Wish:
        """The wish, with a fresh look at whether the lease still counts."""
        ...


class RunKeeper:
    """One worker's keeper of a run."""

    def __init__(self, run: Run, recipe: Recipe, orders: Orders, *, held_out: int, report: Report) -> None:
        """Begin to keep a run.

        Args:
            run: its folder has been begun, and its lease is held.
            recipe: its settings.
            orders: asked after every step, by the first worker alone.
            held_out: number of held-out rows.
            report: is given every line of metrics, on every worker.
        """
        self._run, self._recipe, self._orders = run, recipe, orders
        self._held_out, self._report = held_out, report
        self._lines: list[dict[str, float]] = []
        self._answered = 0
        self._written_at = time.monotonic()
        self._unwritten = False
        self._saver: Saver | None = None
        self._board: Board | None = None
        # Why the guard stopped the run, once it did; on the first worker.
        self.verdict = ""

    def resume(self, state: LoopState) -> bool:
        """Put the newest sound checkpoint into the loop, if there is one; damaged ones are refused by name."""
        checkpoint = broadcast(self._choose() if rank() == 0 else None)
        lines = restore(checkpoint, state) if checkpoint is not None else []
        if rank() != 0:
            return checkpoint is not None
        begun = any(event.kind == "started" for event in self._run.events())
        workers = "in one process" if self._recipe.training.num_workers == 0 else f"workers: {world()}"
        self._run.note("resumed" if begun else "started", workers, step=state.step)
        self._run.set_metrics(lines)
        self._lines = lines
        self._board = Board(self._run, self._lines)
        self._saver = Saver(self._run, self._recipe.checkpoint, may_commit=lambda: self._orders.look() != "lost")
        if checkpoint is not None:
            self._saver.resumed_at(checkpoint.step)
        return checkpoint is not None

    def log(self, metrics: dict[str, float]) -> None:
        """Keep a line of metrics."""
        if self._board is not None:
            self._lines.append(metrics)
            if is_local(self._run.folder):  # where a look and a line cost next to nothing
                self.check_hold()
                self._run.log(metrics)
            else:
                self._unwritten = True
                if time.monotonic() - self._written_at > METRICS_S:
                    self._write_lines()
            self._board.add(metrics)
        self._report(metrics)

    def warn(self, sentence: str) -> None:
        """Show a sentence to whoever trains; any worker may."""
        self._run.note("warning", sentence if world() == 1 else f"worker {rank()}: {sentence}")

    def after_step(self, state: LoopState, evaluation: dict[str, float], *, last: bool = False) -> Ending | None:
        """Write what is due, and say whether the loop ends here.

        Args:
            state: where the loop stands.
            evaluation: what was measured on held-out rows after this step, if anything was.
            last: the loop ends here by itself.

        Raises:
            SlimeRayError: the first worker could not write, or the run is another process's now.
        """
        ending, error = 0, None
        if rank() == 0:
            try:
                ending = self._look(state, evaluation)
                self._save(state, evaluation, now=bool(ending) or last)
            except SlimeRayError as found:
                ending, error = Ending.FAILED, found
                self._unwritten &= not isinstance(found, StorageError)
        ending = largest(ending)
        if error is not None:
            raise error
        return Ending(ending) if ending else None

    def settle(self) -> None:
        """See that metrics.jsonl holds what was logged here, and nothing that a writer before us added late."""
        self.check_hold()
        if self._run.metrics() != self._lines:
            self._run.set_metrics(self._lines)

    def close(self) -> None:
        """Write what is still in memory, and leave no thread that writes."""
        # A checkpoint has the lines too; why training ended says more than that they could not be written.
        with suppress(StorageError, RunError):
            if self._unwritten:
                self._write_lines()
        if self._saver is not None:
            self._saver.join()
        if self._board is not None:
            self._board.close()

    def check_hold(self) -> None:
        """Raises RunError where another process has taken the run over."""
        if self._orders.look() == "lost":
            raise RunError(
                f"{self._run.name}: another process holds this run now, or the command that trained it is gone; "
                "nothing more was written. Run the command again to go on from the last checkpoint"
            )

    def _write_lines(self) -> None:
        self._unwritten = False  # also where it fails: storage that is given up is not asked once more
        self.check_hold()
        self._run.set_metrics(self._lines)
        self._written_at = time.monotonic()

    def _look(self, state: LoopState, evaluation: dict[str, float]) -> int:
        assert self._saver is not None
        if self._orders.wish == "lost":
            self.check_hold()
        self._saver.check()
        metric = self._recipe.checkpoint.best_metric
        if evaluation and metric and metric not in evaluation:
            raise ConfigError(
                f"checkpoint.best_metric = {metric!r}: an evaluation gives no such number; "
                f"expected one of {', '.join(sorted(evaluation))}"
            )
        if evaluation and self._guard(state):
            return Ending.STOPPED
        return Ending.INTERRUPTED if self._orders.wish == "stop" else 0

    def _save(self, state: LoopState, evaluation: dict[str, float], *, now: bool) -> None:
        assert self._saver is not None
        asked = self._orders.wishes > self._answered
        self._answered = self._orders.wishes
        if now or asked or self._saver.due(state.step, evaluation):
            self._saver.save(state, lines=self._lines, evaluation=evaluation)
        if now:
            self._saver.wait()

    def _guard(self, state: LoopState) -> bool:
        """Whether the guard stops the run at its newest evaluation; otherwise what is new is noted."""
        settings = self._recipe.guard
        if settings.action == "off":
            return False
        found = findings(self._lines, settings, pairs=self._held_out)
        if not found:
            return False
        if settings.action == "stop":
            self.verdict = "; ".join(map(str, found))
            return True
        evaluated = [index for index, line in enumerate(self._lines) if any(key.startswith("eval_") for key in line)]
        earlier = findings(self._lines[: evaluated[-2] + 1], settings, pairs=self._held_out)
        known = {finding.metric for finding in earlier}
        for finding in found:
            if finding.metric not in known:
                self._run.note("warning", str(finding), step=state.step)
        return False

    def _choose(self) -> Checkpoint | None:
        checkpoint, refused = newest_sound(self._run.checkpoints, run=self._run.hash)
        place = f"step {checkpoint.step}" if checkpoint else "the start"
        for reason in refused:
            self._run.note("warning", f"a checkpoint was refused: {reason}; going on from {place}")
        # What was refused must not count as one of the last when older ones are removed.
        for folder in self._run.checkpoints.iterdir() if refused else ():
            if checkpoint is None or folder > folder_of(self._run.checkpoints, checkpoint.step):
                remove(folder / MANIFEST)
        return checkpoint
