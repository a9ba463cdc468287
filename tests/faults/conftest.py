"""Fixtures that start trainings in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from slime_ray.runs import Run
from tests.conftest import recipe_writer
from tests.faults.harness import Fault, Start, Started, run_of, train


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Where trainings are forked from: everything is imported there, nothing was computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slime_ray.cli", "slime_ray.training.fit", "slime_ray.training.worker"])
    return context


@pytest.fixture
def start(server: ForkServerContext, tmp_path: Path) -> Iterator[Start]:
    """A function that starts `slime-ray train RECIPE [override ...]`; what still runs after the test is killed."""
    started: list[Started] = []

    def launch(
        recipe: Path, *arguments: str, fault: Fault | None = None, environment: dict[str, str] | None = None
    ) -> Started:
        log = tmp_path / f"{len(started)}.log"
        process = server.Process(target=train, args=([str(recipe), *arguments], str(log), fault, environment or {}))
        process.start()
        started.append(Started(process, log))
        return started[-1]

    yield launch
    for each in started:
        if each.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.process.pid or 0, signal.SIGKILL)
        each.process.join()


# Adapters with dropout and a head trained in full, so that whatever may be forgotten is there; 12 steps.
SETTINGS = {
    "training.max_steps": 12,
    "training.eval_every": 4,
    "training.learning_rate": 1e-2,
    "training.scheduler": "cosine",
    "training.warmup_ratio": 0.2,
    "checkpoint.every_steps": 2,
    "lora.r": 4,
    "lora.alpha": 8,
    "lora.dropout": 0.1,
    "lora.modules_to_save": ["lm_head"],
    "loss.kind": "dpo",
}


@pytest.fixture(scope="session")
def recipe(
    tiny_model: Path, preference_file: Path, held_out_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    write = recipe_writer(tmp_path_factory.mktemp("recipe"), model=tiny_model, data=preference_file)
    return write(SETTINGS | {"data.eval": [str(held_out_file)]})


@pytest.fixture(scope="session")
def in_one_go(server: ForkServerContext, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A function that trains the recipe with some overrides, undisturbed."""

    def train_all(*overrides: str, environment: dict[str, str] | None = None) -> Run:
        folder = tmp_path_factory.mktemp("undisturbed")
        arguments = [str(recipe), f"runs_dir={folder}", *overrides]
        process = server.Process(target=train, args=(arguments, str(folder / "log"), None, environment or {}))
        process.start()
        process.join()
        assert process.exitcode == 0, (folder / "log").read_text()
        return run_of(recipe, *arguments[1:])

    return train_all


@pytest.fixture(scope="session")
def undisturbed(in_one_go: Callable[..., Run]) -> Run:
    """The run of the recipe in one process."""
    return in_one_go()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """An override that gives a test a runs folder of its own."""
    return f"runs_dir={tmp_path / 'runs'}"
