"""Checkpoints are complete or absent, and it is told which are kept and how much room they take."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray import checkpoints
from slime_ray.checkpoints import (
    MANIFEST,
    Checkpoint,
    CheckpointManifest,
    best,
    best_checkpoint,
    discard,
    folder_of,
    newest_sound,
    read_checkpoints,
    room_needed,
    superfluous,
)
from slime_ray.config.checkpoint import CheckpointConfig
from slime_ray.runs import Run
from slime_ray.storage import folder_files, place, write_bytes

HASH = "1" * 64


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a run's checkpoints lie, on a disk or behind a URL."""
    return (tmp_path if request.param == "disk" else place(f"memory:/{tmp_path}")) / "checkpoints"


def write(
    folder: Path, step: int, *, evaluation: dict[str, float] | None = None, run: str = HASH, complete: bool = True
) -> Checkpoint:
    """Write a checkpoint of two small files."""
    inner = folder_of(folder, step)
    write_bytes(inner / "model.safetensors", f"weights {step}".encode())
    write_bytes(inner / "optimizer.safetensors", f"moments {step}".encode())
    manifest = CheckpointManifest(run=run, step=step, evaluation=evaluation or {}, files=folder_files(inner))
    if complete:
        manifest.write(inner / MANIFEST)
    return Checkpoint(inner, manifest)


def steps(found: list[Checkpoint]) -> list[int]:
    return [checkpoint.step for checkpoint in found]


def test_a_checkpoint_is_complete_or_absent(folder: Path) -> None:
    assert read_checkpoints(folder, run=HASH) == ([], [])
    assert newest_sound(folder, run=HASH) == (None, [])
    written = [write(folder, step, evaluation={"eval_loss": step / 8}) for step in (1000, 20, 3)]
    write(folder, 2000, complete=False)
    found, refused = read_checkpoints(folder, run=HASH)
    assert steps(found) == [3, 20, 1000]
    assert found == written[::-1]
    assert refused == []
    assert all(checkpoint.damage() is None for checkpoint in found)
    newest, refused = newest_sound(folder, run=HASH)
    assert newest == found[-1]
    assert refused == []


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (truncate, "has 8 bytes, not 9"),
        (flip_a_bit, "has other content than was written"),
        (Path.unlink, "is missing"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_damage_is_told_by_file(name: str, harm: Callable[[Path], None], found: str, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1)
    file = checkpoint.folder / name
    harm(file)
    assert checkpoint.damage() == f"{file} {found}"


def test_a_file_more_is_no_damage(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1)
    (checkpoint.folder / ".tmp").touch()
    assert checkpoint.damage() is None


def test_the_newest_sound_one_is_found_and_the_newer_ones_are_named(folder: Path) -> None:
    sound, flipped, short = (write(folder, step) for step in (2, 3, 4))
    others = write(folder, 5, run="2" * 64)
    edited, no_json = write(folder, 6), write(folder, 7)
    write(folder, 8, complete=False)
    flip_a_bit(flipped.folder / "model.safetensors")
    truncate(short.folder / "optimizer.safetensors")
    for checkpoint, old, new in [(edited, b'"step": 6', b'"step": 9'), (no_json, b"}", b"")]:
        manifest = checkpoint.folder / MANIFEST
        manifest.write_bytes(manifest.read_bytes().replace(old, new))
    truncate(write(folder, 1).folder / "model.safetensors")  # older than the sound one: nobody looks

    found, refused = newest_sound(folder, run=HASH)
    assert found == sound
    assert refused[0] == f"{others.folder} is of another run (hash {'2' * 16})"
    assert refused[1] == f"{edited.folder / MANIFEST}: it was changed after it was written"
    assert refused[2].startswith(f"{no_json.folder / MANIFEST}: the file is no JSON (")
    assert refused[3:] == [
        f"{short.folder / 'optimizer.safetensors'} has 8 bytes, not 9",
        f"{flipped.folder / 'model.safetensors'} has other content than was written",
    ]


def test_where_none_is_sound_each_is_named(tmp_path: Path) -> None:
    written = [write(tmp_path, step) for step in (1, 2)]
    for checkpoint in written:
        (checkpoint.folder / "model.safetensors").unlink()
    missing = [f"{checkpoint.folder / 'model.safetensors'} is missing" for checkpoint in reversed(written)]
    assert newest_sound(tmp_path, run=HASH) == (None, missing)


def rated(folder: Path, values: list[float | None], *, metric: str = "eval_loss") -> list[Checkpoint]:
    """Checkpoints of steps 1, 2, ... with these evaluations, None for one without."""
    return [
        write(folder, step, evaluation={} if value is None else {metric: value}) for step, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("values", "best_is", "step"),
    [
        ([3.0, 1.0, 2.0], "lowest", 2),
        ([3.0, 1.0, 2.0], "highest", 1),
        ([-3.0, None, -4.0], "lowest", 3),
        ([-3.0, None, -4.0], "highest", 1),
        ([2.0, 1.0, 1.0, None], "lowest", 2),
        ([0.0, 1.0, 1.0, None], "highest", 2),
        ([None, 0.0], "lowest", 2),
        ([None, None], "lowest", None),
        ([], "highest", None),
    ],
)
def test_the_best_is_that_of_the_best_evaluation(
    values: list[float | None], best_is: str, step: int | None, tmp_path: Path
) -> None:
    settings = CheckpointConfig.model_validate({"best_is": best_is})
    run = Run(tmp_path, "sft", HASH)
    found = rated(run.checkpoints, values)
    for order in (found, found[::-1]):
        chosen = best(order, settings)
        assert (chosen.step if chosen else None) == step
    assert best_checkpoint(run, settings) == best(found, settings)


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_what_is_no_number_is_never_the_best(best_is: str, tmp_path: Path) -> None:
    found = rated(tmp_path, [math.nan, 1.0, math.nan])
    chosen = best(found, CheckpointConfig.model_validate({"best_is": best_is}))
    assert chosen == found[1]


def test_the_best_goes_by_its_metric_or_there_is_none(tmp_path: Path) -> None:
    found = [write(tmp_path, step, evaluation={"eval_loss": step, "eval_accuracy": -step}) for step in (1, 2)]

    def chosen(metric: str) -> Checkpoint | None:
        return best(found, CheckpointConfig(best_metric=metric))

    assert chosen("eval_loss") == found[0]
    assert chosen("eval_accuracy") == found[1]
    assert chosen("eval_other") is None
    assert chosen("") is None


@pytest.mark.parametrize(
    ("values", "settings", "gone"),
    [
        ([1.0, 2.0, 3.0, 4.0], {"keep_last": 2}, [2]),
        ([4.0, 1.0, 3.0, 2.0], {"keep_last": 1}, [1, 3]),
        ([4.0, 1.0, 3.0, 2.0], {"keep_last": 1, "best_is": "highest"}, [2, 3]),
        ([4.0, 1.0, 3.0, 2.0], {"keep_last": 1, "best_metric": ""}, [1, 2, 3]),
        ([None, None, None], {"keep_last": 1}, [1, 2]),
        ([2.0, 1.0], {"keep_last": 2}, []),
        ([2.0, 1.0], {"keep_last": 5}, []),
        ([], {"keep_last": 1}, []),
    ],
)
def test_the_last_and_the_best_are_kept(
    values: list[float | None], settings: dict[str, object], gone: list[int], tmp_path: Path
) -> None:
    found = rated(tmp_path, values)
    assert steps(superfluous(found, CheckpointConfig.model_validate(settings))) == gone


def test_a_checkpoint_is_discarded(folder: Path) -> None:
    gone, stays = write(folder, 1), write(folder, 2)
    discard(gone.folder)
    discard(folder_of(folder, 3))
    assert not gone.folder.exists()
    assert read_checkpoints(folder, run=HASH) == ([stays], [])
    assert stays.damage() is None


def test_a_checkpoint_that_is_half_discarded_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write(tmp_path, 1)
    remove, calls = checkpoints.remove, []

    def remove_one(path: Path) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        remove(path)

    monkeypatch.setattr(checkpoints, "remove", remove_one)
    with pytest.raises(OSError, match="Input/output error"):
        discard(checkpoint.folder)
    assert read_checkpoints(tmp_path, run=HASH) == ([], [])
    assert set(folder_files(checkpoint.folder)) == set(checkpoint.manifest.files)


@pytest.mark.parametrize(
    ("settings", "lora", "largest"),
    [
        # Two kept, the best, and one being written, each of weights and two moments; final/ holds the model.
        ({}, False, 4 * 300 + 1000),
        ({"best_metric": ""}, False, 3 * 300 + 1000),
        ({"keep_last": 5}, False, 7 * 300 + 1000),
        ({}, True, 4 * 300 + 1000 + 100),
    ],
)
def test_the_room_that_a_run_needs(settings: dict[str, object], lora: bool, largest: int) -> None:
    config = CheckpointConfig.model_validate(settings)
    assert room_needed(model=1000, trained=100, lora=lora, settings=config) == (300, largest)
