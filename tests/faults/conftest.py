"""Fixtures that start trainings in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.harness import Kill, Start, Started, train


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

    def launch(recipe: Path, *arguments: str, kill: Kill | None = None) -> Started:
        log = tmp_path / f"{len(started)}.log"
        process = server.Process(target=train, args=([str(recipe), *arguments], str(log), kill))
        process.start()
        started.append(Started(process, log))
        return started[-1]

    yield launch
    for each in started:
        if each.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.process.pid or 0, signal.SIGKILL)
        each.process.join()
