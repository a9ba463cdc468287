"""What may be removed from a runs folder, and removing it: checkpoints that are past their use or not complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_ray.checkpoints import best, discard, read_checkpoints, superfluous
from slime_ray.errors import RunError
from slime_ray.lease import acquire, held_by
from slime_ray.runs import Run, all_runs, read_recipe
from slime_ray.storage import remove, used_bytes


@dataclass(frozen=True)
class Removed:
    """A folder or file that was removed, why, and the bytes that this freed."""

    path: Path
    reason: str
    size: int


def prune(runs_dir: Path) -> tuple[list[Removed], list[str]]:
    """Remove what retention allows and nothing else.

    Of a finished run the best checkpoint stays, unless it is the last one, whose weights are final/; of any other the
    last ones and the best, as its recipe says. A run that is held is left alone. Models, metrics and caches stay.

    Returns:
        What was removed, and a sentence for each run that was left alone.
    """
    removed: list[Removed] = []
    left: list[str] = []
    for run in all_runs(runs_dir, left):
        if (holder := held_by(run.lease)) is not None:
            left.append(f"{run.name}: held by process {holder.pid} on {holder.host}")
            continue
        try:
            lease = acquire(run.lease, what=run.name, wait=False, say=lambda _: None)
            try:
                removed += [_remove(path, reason) for path, reason in list(removable(run))]
            finally:
                lease.forget()
        except RunError as error:
            left.append(f"{run.name}: {error}")
    return removed, left


def removable(run: Run) -> Iterator[tuple[Path, str]]:
    """The checkpoints of a run that nobody holds which are of no more use, each with the reason.

    Raises:
        RunError: what tells so cannot be read.
    """
    settings = read_recipe(run).checkpoint
    complete, _ = read_checkpoints(run.checkpoints, run=run.hash)
    known = {checkpoint.folder for checkpoint in complete}
    for folder in sorted(run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []:
        if folder not in known and folder.is_dir():
            yield folder, "not complete"
    if (manifest := run.manifest()) is None:
        for checkpoint in superfluous(complete, settings):
            yield checkpoint.folder, "neither among the last nor the best"
        return
    kept = best(complete, settings)
    for checkpoint in complete:
        if checkpoint is not kept:
            yield checkpoint.folder, "its run is finished"
        elif checkpoint.step == manifest.metrics["step"]:
            yield checkpoint.folder, "its run is finished, and final/ has its weights"


def _remove(path: Path, reason: str) -> Removed:
    size = used_bytes(path)
    if path.parent.name == "checkpoints":
        discard(path)
    else:
        remove(path)
    return Removed(path, reason, size)
