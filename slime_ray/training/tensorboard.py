"""tensorboard/: the lines of metrics.jsonl as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Iterable

from tensorboardX import SummaryWriter

from slime_ray.runs import Run
from slime_ray.storage import is_local, remove


class Board:
    """Writes each metric under its own name; rebuilt from metrics.jsonl when a run goes on, so nothing stands twice."""

    def __init__(self, run: Run, lines: Iterable[dict[str, float]]) -> None:
        """Args: the run, and its lines of metrics so far."""
        folder = run.folder / "tensorboard"
        remove(folder)
        # The library writes to local disks only.
        self._writer = SummaryWriter(logdir=str(folder), flush_secs=10) if is_local(folder) else None
        for line in lines:
            self.add(line)

    def add(self, metrics: dict[str, float]) -> None:
        """Add one line of metrics."""
        if self._writer is not None:
            for name, value in metrics.items():
                if name != "step":
                    self._writer.add_scalar(name, value, global_step=int(metrics["step"]))

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
