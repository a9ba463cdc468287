"""When a checkpoint is due, what becomes of an error in the thread that writes it, and what is kept."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from slime_ray.checkpoints import folder_of, read_checkpoints
from slime_ray.config.checkpoint import CheckpointConfig
from slime_ray.config.training import TrainingConfig
from slime_ray.errors import StorageError
from slime_ray.runs import Run
from slime_ray.training import saver
from slime_ray.training.checkpoint import LoopState, restore
from slime_ray.training.optimizer import make_optimizer
from slime_ray.training.saver import Saver
from tests.faults.harness import wait_until

NEVER: dict[str, Any] = {"every_minutes": 1e9, "best_metric": ""}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, "sft", "1" * 64)


@pytest.fixture
def state() -> LoopState:
    """A loop whose one weight is its step."""
    parameters = [("weight", nn.Parameter(torch.zeros(1)))]
    optimizer, schedule = make_optimizer(parameters, TrainingConfig(), steps=100)
    return LoopState(parameters, optimizer, schedule)


def make(run: Run, settings: dict[str, Any], *, may_commit: Callable[[], bool] = lambda: True) -> Saver:
    return Saver(run, CheckpointConfig.model_validate(settings), may_commit=may_commit)


@torch.no_grad()
def save(writer: Saver, state: LoopState, step: int, *, evaluation: dict[str, float] | None = None) -> None:
    state.step = step
    state.parameters[0][1].fill_(step)
    writer.save(state, lines=[{"step": step}], evaluation=evaluation or {})


def kept(run: Run) -> list[int]:
    """The steps of the complete checkpoints, each of which is sound."""
    found, refused = read_checkpoints(run.checkpoints, run=run.hash)
    assert refused == []
    assert [checkpoint.damage() for checkpoint in found] == [None] * len(found)
    return [checkpoint.step for checkpoint in found]


class Gate:
    """Holds the writing thread where it asks whether it may complete a checkpoint."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> bool:
        self.reached.set()
        assert self.opened.wait(30)
        return True


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_a_checkpoint_is_due_every_so_many_steps(run: Run, state: LoopState) -> None:
    writer = make(run, NEVER | {"every_steps": 3})
    assert [writer.due(step, {}) for step in (1, 2, 3, 4)] == [False, False, True, True]
    save(writer, state, 4)
    writer.wait()
    assert [writer.due(step, {}) for step in (4, 5, 6, 7)] == [False, False, False, True]


def test_the_steps_count_from_where_a_run_goes_on(run: Run, state: LoopState) -> None:
    writer = make(run, NEVER | {"every_steps": 3})
    writer.resumed_at(7)
    assert [writer.due(step, {}) for step in (8, 9, 10)] == [False, False, True]
    save(writer, state, 7)
    writer.wait()
    assert kept(run) == []  # it is there already


def test_a_checkpoint_is_due_every_so_many_minutes(run: Run, state: LoopState, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=lambda: now[0]))
    writer = make(run, NEVER | {"every_minutes": 2.0})
    for _ in range(2):
        now[0] += 119
        assert not writer.due(1, {})
        now[0] += 1
        assert writer.due(1, {})
        now[0] += 1000
        save(writer, state, int(now[0]))
        writer.wait()


def test_nothing_is_due_where_nothing_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=lambda: now[0]))
    writer = make(run, NEVER)
    now[0] = 1e9
    assert not writer.due(10**6, {"eval_loss": -1e9})


@pytest.mark.parametrize(("best_is", "sign"), [("lowest", 1), ("highest", -1)])
def test_the_best_evaluation_so_far_is_due(best_is: str, sign: int, run: Run, state: LoopState) -> None:
    settings: dict[str, Any] = {"every_minutes": 1e9, "best_is": best_is}
    writer = make(run, settings)

    def due(value: float) -> bool:
        return writer.due(1, {"eval_loss": sign * value, "eval_other": 0.0})

    assert not writer.due(1, {})
    assert not writer.due(1, {"eval_other": 0.0})
    assert due(2.0)
    save(writer, state, 1, evaluation={"eval_loss": sign * 2.0})
    assert [due(value) for value in (2.1, 2.0, 1.9)] == [False, False, True]
    save(writer, state, 2, evaluation={"eval_loss": sign * 3.0})
    assert [due(value) for value in (2.0, 1.9)] == [False, True]
    writer.wait()
    # A run that goes on knows the best of its checkpoints.
    writer = make(run, settings)
    assert [due(value) for value in (2.0, 1.9)] == [False, True]


def test_while_one_is_written_only_a_better_one_is_due(run: Run, state: LoopState, gate: Gate) -> None:
    writer = make(run, {"every_minutes": 1e9, "every_steps": 1}, may_commit=gate)
    save(writer, state, 1, evaluation={"eval_loss": 2.0})
    assert gate.reached.wait(30)
    assert not writer.due(9, {})
    assert not writer.due(9, {"eval_loss": 2.0})
    assert writer.due(9, {"eval_loss": 1.0})
    gate.opened.set()
    wait_until(lambda: writer.due(9, {}))


def test_training_goes_on_while_a_checkpoint_is_written(run: Run, state: LoopState, gate: Gate) -> None:
    writer = make(run, NEVER | {"keep_last": 5}, may_commit=gate)
    save(writer, state, 1)
    assert gate.reached.wait(30)
    assert kept(run) == []
    with torch.no_grad():
        state.parameters[0][1].fill_(99.0)
    state.step = 99
    second = threading.Thread(target=save, args=(writer, state, 2))
    second.start()
    second.join(0.1)
    assert second.is_alive()  # one after the other
    gate.opened.set()
    second.join(30)
    writer.wait()
    assert kept(run) == [1, 2]
    for checkpoint in read_checkpoints(run.checkpoints, run=run.hash)[0]:
        assert restore(checkpoint, state) == [{"step": checkpoint.step}]
        assert state.parameters[0][1].item() == checkpoint.step == state.step


def test_a_step_is_written_once(run: Run, state: LoopState) -> None:
    asked = []
    writer = make(run, NEVER, may_commit=lambda: bool(asked.append(1)) or True)
    for step in (0, 0, 1, 1):
        save(writer, state, step)
    writer.wait()
    assert kept(run) == [0, 1]
    assert len(asked) == 4  # each before and after its files were written


def test_a_full_disk_is_told_where_training_looks(run: Run, state: LoopState, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = make(run, NEVER | {"keep_last": 1})
    save(writer, state, 1)
    writer.wait()
    monkeypatch.setattr(os, "fsync", fail)
    writer.check()
    save(writer, state, 2)
    message = f"^{folder_of(run.checkpoints, 2)}: there is no space left on the disk; "
    with pytest.raises(StorageError, match=message):
        writer.wait()
    for again in (writer.check, writer.wait, lambda: save(writer, state, 3)):
        with pytest.raises(StorageError, match=message):
            again()
    assert kept(run) == [1]


def test_an_error_of_the_program_is_told_as_it_is(run: Run, state: LoopState) -> None:
    def fail() -> bool:
        raise ZeroDivisionError("a mistake of ours")

    writer = make(run, NEVER, may_commit=fail)
    save(writer, state, 1)
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        writer.wait()
    assert kept(run) == []


def test_who_may_not_complete_a_checkpoint_removes_none(run: Run, state: LoopState) -> None:
    writer = make(run, NEVER | {"keep_last": 5})
    for step in (1, 2, 3):
        save(writer, state, step)
    writer.wait()
    late = make(run, NEVER | {"keep_last": 1}, may_commit=lambda: False)
    save(late, state, 4)
    late.wait()
    assert kept(run) == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"keep_last": 2}, [2, 4, 5]),
        ({"keep_last": 1, "best_is": "highest"}, [1, 5]),
        ({"keep_last": 2, "best_metric": ""}, [4, 5]),
        ({"keep_last": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_and_the_best_are_kept(settings: dict[str, Any], steps: list[int], run: Run, state: LoopState) -> None:
    writer = make(run, settings)
    for step, loss in enumerate((5.0, 1.0, 3.0, 2.0, 4.0), 1):
        save(writer, state, step, evaluation={"eval_loss": loss})
    writer.wait()
    assert kept(run) == steps
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"step-{step:08d}" for step in steps]
