"""The board holds the lines of metrics.jsonl, each once."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from slime_ray.runs import Run
from slime_ray.storage import place
from slime_ray.training import tensorboard
from slime_ray.training.tensorboard import Board

LINES = [
    {"step": 0, "eval_loss": 1.5, "eval_rewards/accuracies": 0.25},
    {"step": 1, "loss": 0.1, "num_tokens": 123},
    {"step": 1, "eval_loss": 1.25},
    {"step": 2, "loss": math.inf, "num_tokens": 2**24},
]

Point = tuple[int, str, float]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path, "sft", "1" * 64)
    run.folder.mkdir()
    return run


def events(run: Run) -> Iterator[Event]:
    """What lies on the disk: records of length, its checksum, content, its checksum."""
    for path in sorted((run.folder / "tensorboard").iterdir()):
        assert ".tfevents." in path.name  # what TensorBoard looks for
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[12 + size + 4 :]


def points(run: Run) -> list[Point]:
    return [(event.step, value.tag, value.simple_value) for event in events(run) for value in event.summary.value]


def expected(lines: list[dict[str, float]]) -> list[Point]:
    return [
        (int(line["step"]), name, float(np.float32(value)))
        for line in lines
        for name, value in line.items()
        if name != "step"
    ]


def test_the_board_holds_what_was_logged(run: Run) -> None:
    board = Board(run, [])
    for line in LINES:
        board.add(line)
    board.close()
    assert points(run) == expected(LINES)
    assert next(events(run)).file_version == "brain.Event:2"


def test_a_run_that_goes_on_has_every_step_once(run: Run) -> None:
    board = Board(run, [])
    for line in [*LINES, {"step": 3, "loss": 9.0}]:  # after the last checkpoint: done again
        board.add(line)
    board.close()
    board = Board(run, LINES[:3])
    for line in [*LINES[3:], {"step": 3, "loss": 8.0}]:
        board.add(line)
    board.close()
    assert points(run) == expected([*LINES, {"step": 3, "loss": 8.0}])


def test_what_was_logged_can_be_looked_at_while_the_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "_FLUSH_S", -1.0)
    board = Board(run, LINES[:1])
    board.add(LINES[1])
    assert points(run) == expected(LINES[:2])
    board.close()


def test_a_run_behind_a_url_has_no_board(tmp_path: Path) -> None:
    run = Run(place(f"memory:/{tmp_path}"), "sft", "1" * 64)
    board = Board(run, LINES)
    board.add(LINES[0])
    board.close()
    assert not run.folder.exists()
