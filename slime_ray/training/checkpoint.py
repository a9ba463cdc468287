"""The state of a training loop on the host, written to a checkpoint's folder and read back from one.

What is drawn at random in a step is a function of the seed, the step and the worker (`loop.seed_step`), so a
checkpoint needs no state of a random generator and fits any number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from slime_ray.checkpoints import MANIFEST, Checkpoint, CheckpointManifest
from slime_ray.copies import new_folder
from slime_ray.runs import to_lines
from slime_ray.storage import (
    flush,
    folder_files,
    is_local,
    read_bytes,
    whole_lines,
    write_json,
    write_text,
)

_WEIGHTS, _OPTIMIZER, _POSITION = "model.safetensors", "optimizer.safetensors", "position.json"
# The lines of metrics.jsonl so far: what a run that goes on from here has to begin with.
_METRICS = "metrics.jsonl"


@dataclass
class LoopState:
    """Where a training loop stands.

    Attributes:
        parameters: what is trained, by name.
        optimizer, schedule: of these parameters.
        step: optimizer steps that were done.
        tokens: that the body has seen.
    """

    parameters: list[tuple[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    step: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A copy of a loop's state in host memory.

    Attributes:
        weights: the trained parameters by name: all of a model, or its adapter.
        optimizer: AdamW's moments and step counts, `exp_avg.NAME` and so on.
        position: the rest, as JSON: step, tokens and the schedule.
        lines: of metrics.jsonl so far.
        evaluation: what was measured on held-out rows at this step.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    position: dict[str, Any]
    lines: Sequence[dict[str, float]]
    evaluation: dict[str, float]

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return self.position["step"]


def take_snapshot(state: LoopState, *, lines: Sequence[dict[str, float]], evaluation: dict[str, float]) -> Snapshot:
    """Copy a loop's state to host memory; training may go on as soon as this returns."""
    moments = {
        f"{kind}.{name}": _to_host(value)
        for name, parameter in state.parameters
        for kind, value in state.optimizer.state.get(parameter, {}).items()
    }
    position = {"step": state.step, "tokens": state.tokens, "schedule": state.schedule.state_dict()}
    weights = {name: _to_host(parameter) for name, parameter in state.parameters}
    return Snapshot(weights, moments, position, lines=tuple(lines), evaluation=evaluation)


def write_checkpoint(snapshot: Snapshot, folder: Path, *, run: str, may_commit: Callable[[], bool]) -> bool:
    """Write a snapshot's files and, when they are safe on the disk, the manifest that makes them a checkpoint.

    Args:
        snapshot: what to write.
        folder: where; what an earlier attempt left there is removed.
        run: the hash of the run.
        may_commit: asked before the manifest is written.

    Returns:
        Whether the checkpoint was completed.
    """
    with new_folder(folder, last=MANIFEST) as here:
        _save(snapshot.weights, here / _WEIGHTS)
        _save(snapshot.optimizer, here / _OPTIMIZER)
        write_json(here / _POSITION, snapshot.position)
        write_text(here / _METRICS, to_lines(snapshot.lines))
        files = folder_files(here)
    if not may_commit():
        return False
    manifest = CheckpointManifest(run=run, step=snapshot.step, evaluation=snapshot.evaluation, files=files)
    manifest.write(folder / MANIFEST)
    flush(folder.parent)
    return True


def restore(checkpoint: Checkpoint, state: LoopState) -> list[dict[str, float]]:
    """Put a checkpoint's state into a loop, in place.

    Returns:
        The lines of metrics.jsonl so far.
    """
    restore_weights(checkpoint, state.parameters)
    moments = _load(checkpoint.folder / _OPTIMIZER)
    position = json.loads((checkpoint.folder / _POSITION).read_text(encoding="utf-8"))
    of_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        of_parameter.setdefault(name, {})[kind] = value
    for name, parameter in state.parameters:
        if name in of_parameter:
            state.optimizer.state[parameter] = {
                kind: _beside(parameter, value) for kind, value in of_parameter[name].items()
            }
    state.schedule.load_state_dict(position["schedule"])
    for group, rate in zip(state.optimizer.param_groups, state.schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    state.step, state.tokens = position["step"], position["tokens"]
    return [json.loads(line) for line in whole_lines(checkpoint.folder / _METRICS)]


@torch.no_grad()
def restore_weights(checkpoint: Checkpoint, parameters: list[tuple[str, nn.Parameter]]) -> None:
    """Put a checkpoint's weights into the trained parameters, in place."""
    weights = _load(checkpoint.folder / _WEIGHTS)
    for name, parameter in parameters:
        parameter.copy_(weights[name])


def _beside(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A moment or a count of steps on the parameter's device, a moment with its strides too: the fused optimizer reads
    all of them as they lie in memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _to_host(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    flush(path)


def _load(path: Path) -> dict[str, Tensor]:
    return load_file(path) if is_local(path) else load(read_bytes(path))
