"""What a run can be continued from: folders that are complete or absent, by a manifest that is written last."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_ray.config.checkpoint import CheckpointConfig
from slime_ray.errors import RunError
from slime_ray.runs import Run
from slime_ray.sealed import Sealed
from slime_ray.storage import file_hash, remove

MANIFEST = "manifest.json"


class CheckpointManifest(Sealed):
    """What a checkpoint consists of.

    Attributes:
        run: the hash of the run that it belongs to.
        step: optimizer steps that were done.
        evaluation: what was measured on held-out rows at this step; empty if nothing was.
        files: size and hash of every file.
    """

    run: str
    step: int
    evaluation: dict[str, float]
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its manifest."""

    folder: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return self.manifest.step

    def damage(self) -> str | None:
        """What is wrong with the first file that is not as the manifest says, None for a sound checkpoint."""
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{path} is missing"
            if (size := path.stat().st_size) != expected["size"]:
                return f"{path} has {size:,} bytes, not {expected['size']:,}"
            if file_hash(path) != expected["sha256"]:
                return f"{path} has other content than was written"
        return None


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:08d}"


def read_checkpoints(checkpoints: Path, *, run: str) -> tuple[list[Checkpoint], list[str]]:
    """All complete checkpoints of a run, oldest first, and what is wrong with those whose manifest is no good.

    Args:
        checkpoints: the folder that keeps them.
        run: the run's hash; a checkpoint of another run is refused.
    """
    found, refused = [], []
    for folder in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        try:
            manifest = CheckpointManifest.read(folder / MANIFEST)
        except RunError as error:
            refused.append(str(error).partition(";")[0])
            continue
        if manifest is None:
            continue  # being written, or left behind when it was
        if manifest.run != run:
            refused.append(f"{folder} is of another run (hash {manifest.run[:16]})")
        else:
            found.append(Checkpoint(folder, manifest))
    return found, refused


def newest_sound(checkpoints: Path, *, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of which every byte is as it was written, and what is wrong with the newer ones."""
    found, refused = read_checkpoints(checkpoints, run=run)
    for checkpoint in reversed(found):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint, refused
        refused.append(damage)
    return None, refused


def best(checkpoints: Iterable[Checkpoint], settings: CheckpointConfig) -> Checkpoint | None:
    """The checkpoint of the best evaluation by `best_metric`, the oldest of equal ones; None if none has one."""
    metric = settings.best_metric
    rated = [each for each in checkpoints if math.isfinite(each.manifest.evaluation.get(metric, math.nan))]
    sign = 1 if settings.best_is == "lowest" else -1
    return min(rated, key=lambda each: (sign * each.manifest.evaluation[metric], each.step), default=None)


def best_checkpoint(run: Run, settings: CheckpointConfig) -> Checkpoint | None:
    """The checkpoint of a run's best evaluation, if one is kept."""
    return best(read_checkpoints(run.checkpoints, run=run.hash)[0], settings)


def newest_step(run: Run) -> int | None:
    """The step that a run goes on from: of its newest complete checkpoint; None before the first."""
    complete, _ = read_checkpoints(run.checkpoints, run=run.hash)
    return complete[-1].step if complete else None


def superfluous(checkpoints: list[Checkpoint], settings: CheckpointConfig) -> list[Checkpoint]:
    """Those that are neither among the last `keep_last` nor the best, oldest first."""
    kept = [*checkpoints[-settings.keep_last :], best(checkpoints, settings)]
    return [each for each in checkpoints if each not in kept]


def discard_incomplete(checkpoints: Path) -> None:
    """Remove what a crash left of checkpoints that were being written; the caller holds the run's lease."""
    for folder in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        if folder.is_dir() and not (folder / MANIFEST).exists():
            discard(folder)


def discard(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: what a crash leaves of it is no checkpoint."""
    remove(folder / MANIFEST)
    remove(folder)


def room_needed(*, model: int, trained: int, lora: bool, settings: CheckpointConfig) -> tuple[int, int]:
    """Bytes of one checkpoint, and of a run at its largest: what is kept, one being written, and final/.

    Args:
        model: bytes of all weights, as they are trained.
        trained: bytes of the trained ones; AdamW keeps two numbers for each.
        lora: final/ holds the adapter beside the merged model.
        settings: how many checkpoints are kept.
    """
    checkpoint = 3 * trained
    kept = settings.keep_last + bool(settings.best_metric) + 1
    return checkpoint, kept * checkpoint + model + (trained if lora else 0)
