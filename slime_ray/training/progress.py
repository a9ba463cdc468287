"""How far a run is: a bar on a terminal, plain lines in a log. It reads metrics.jsonl, wherever the run is trained."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from slime_ray.errors import StorageError
from slime_ray.runs import Run
from slime_ray.storage import is_local, read_bytes

_POLL_S = 0.5
# Behind a URL, where every look is paid for and metrics are written every few seconds.
_REMOTE_POLL_S = 5.0
_SECONDS_BETWEEN_LINES = 10.0
_SHOWN = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "mean_logps/chosen",
    "mean_logps/rejected",
    "pairs_per_second",
)


class NewMetrics:
    """The lines of a run's metrics.jsonl as they are written."""

    def __init__(self, run: Run) -> None:
        """Args: the run, which need not have begun."""
        self._path = run.metrics_file
        self._read = (0, 0)

    def lines(self) -> list[dict[str, float]]:
        """What was written since the last look; all of it, where the file was written anew meanwhile."""
        try:
            found = self._path.stat()
            identity, position = self._read
            if found.st_ino != identity or found.st_size < position:
                position = 0  # written anew when the run went on from a checkpoint
            written = b"" if found.st_size <= position else read_bytes(self._path, max(position - 1, 0))
            if position and written[:1] != b"\n" and written:  # written anew, and longer by now than it was
                position, written = 0, b"\n" + read_bytes(self._path)
        except FileNotFoundError:
            return []
        written = written.removeprefix(b"\n")
        whole = written[: written.rfind(b"\n") + 1]
        self._read = (found.st_ino, position + len(whole))
        return [json.loads(line) for line in whole.splitlines()]


class Progress:
    """A context in which a thread follows a run's metrics and shows them on standard error."""

    def __init__(self, run: Run, *, steps: int, told: int = 0) -> None:
        """Args: the run whose metrics.jsonl grows, the step that it ends with, and how many events are old."""
        self._run = run
        self._steps = steps
        self._metrics = NewMetrics(run)
        self._told = told
        self._poll_s = _POLL_S if is_local(run.folder) else _REMOTE_POLL_S
        self._last: dict[str, float] | None = None
        self._ended = threading.Event()
        self._console = Console(stderr=True)
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        if self._console.is_terminal:
            self._follow_with_bar()
        else:
            self._follow_with_lines()

    def _follow_with_bar(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, TextColumn("{task.fields[values]}"), console=self._console, transient=False) as bar:
            task = bar.add_task(self._run.name, total=self._steps, values="starting")
            ended = False
            while not ended:
                ended = self._ended.wait(self._poll_s)
                for line in self._news():
                    self._console.print(line, style="yellow", markup=False, highlight=False)
                if latest := self._latest():
                    bar.update(task, completed=int(latest["step"]), values=_values(latest))

    def _follow_with_lines(self) -> None:
        print(f"{self._run.name}: {self._steps} steps", file=sys.stderr, flush=True)
        printed, ended, shown = time.monotonic(), False, 0
        while not ended:
            ended = self._ended.wait(self._poll_s)
            for line in self._news():
                print(line, file=sys.stderr, flush=True)
            due = ended or time.monotonic() - printed > _SECONDS_BETWEEN_LINES
            if due and (latest := self._latest()) and latest["step"] != shown:
                printed, shown = time.monotonic(), latest["step"]
                line = f"{self._run.name}: step {int(latest['step'])}/{self._steps} {_values(latest)}"
                print(line, file=sys.stderr, flush=True)

    def _latest(self) -> dict[str, float] | None:
        """The last step's metrics; evaluations have lines of their own. Reads only what was written since."""
        steps: list[dict[str, float]] = []
        with suppress(StorageError):  # the run itself tells of it
            steps = [line for line in self._metrics.lines() if "loss" in line]
        self._last = steps[-1] if steps else self._last
        return self._last

    def _news(self) -> list[str]:
        """Warnings since the last look; what else happened is told by the command itself."""
        try:
            events = self._run.events()
        except StorageError:
            return []
        new, self._told = events[self._told :], len(events)
        return [f"{self._run.name}: warning: {event.message}" for event in new if event.kind == "warning"]


def _values(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in _SHOWN if name in metrics)
