"""tensorboard/: the lines of metrics.jsonl as TensorBoard reads them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from slime_ray.runs import Run
from slime_ray.storage import is_local, remove

_FLUSH_S = 10.0


class Board:
    """Writes each metric under its own name; rebuilt from metrics.jsonl when a run goes on, so nothing stands twice."""

    def __init__(self, run: Run, lines: Iterable[dict[str, float]]) -> None:
        """Args: the run, and its lines of metrics so far."""
        folder = run.folder / "tensorboard"
        remove(folder)
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()
        if is_local(folder):  # the library writes to local disks only
            folder.mkdir(parents=True)
            self._writer = EventsWriter(str(folder / "events"))
        for line in lines:
            self.add(line)

    def add(self, metrics: dict[str, float]) -> None:
        """Add one line of metrics."""
        if self._writer is None:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if name != "step"]
        event = Event(wall_time=time.time(), step=int(metrics["step"]), summary=Summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
