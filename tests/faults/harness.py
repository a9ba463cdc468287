"""Trainings in processes of their own that are killed on purpose, and how their outcomes are compared."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from slime_ray.overrides import load_recipe
from slime_ray.runs import Run

# Audit events of the interpreter that change files.
_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
# Names faults to processes that start elsewhere: see site/sitecustomize.py.
VARIABLE = "SLIME_RAY_TEST_FAULT"
HANG = -1
TIMINGS = {"tokens_per_second", "pairs_per_second"}


@dataclass(frozen=True)
class Fault:
    """A signal that a training gets at a file operation, the nth whose path has `inside` in it.

    Attributes:
        inside: such as "RUN/checkpoints/".
        operation: from 0; a number that is never reached does nothing.
        signal: what it gets; SIGSTOP holds it there, 0 means os._exit(1), HANG that the thread never goes on.
        delay_s: passes between the operation and the signal.
        count_to: a file that is given the number of operations that were seen.
        once: a file that is made when it strikes; it does not strike where the file is already.
    """

    inside: str
    operation: int
    delay_s: float = 0.0
    signal: int = signal.SIGKILL
    count_to: str | None = None
    once: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a training ended: exit code, or minus the signal's number; what it printed on standard error."""

    code: int
    err: str


@dataclass(frozen=True)
class Started:
    """A training that is under way."""

    process: ForkServerProcess
    log: Path

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def stopped(self) -> bool:
        """Whether a SIGSTOP holds it."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid or 0, number)

    def wait(self, timeout_s: float = 120) -> Ended:
        """Wait for its end."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "still running"
        return Ended(self.process.exitcode, self.log.read_text())


Start = Callable[..., Started]


def run_of(recipe: Path, *overrides: str) -> Run:
    """The run that a recipe stands for."""
    from slime_ray.training.stage import resolve

    return resolve(load_recipe(recipe, list(overrides))).run


def metrics_without_timings(run: Run) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, all but how long things took."""
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in run.metrics()]


def assert_same_outcome(run: Run, undisturbed: Run) -> None:
    """Final weights equal to the last bit, and all metrics too."""
    assert metrics_without_timings(run) == metrics_without_timings(undisturbed)
    name = "model.safetensors"
    assert (run.final / name).read_bytes() == (undisturbed.final / name).read_bytes()
    assert run.manifest() is not None


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 60) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def in_workers(*faults: Fault) -> dict[str, str]:
    """Environment variables with which faults strike the Ray workers of a command instead of the command."""
    return {
        "PYTHONPATH": f"{Path(__file__).parent / 'site'}:{Path(__file__).parents[2]}",
        VARIABLE: json.dumps([asdict(fault) for fault in faults]),
    }


def train(arguments: list[str], log: str, fault: Fault | None, environment: dict[str, str]) -> None:
    """What a forked process does: the command `slime-ray train` with its output in a file."""
    os.setpgrp()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from slime_ray.cli import main

    torch.set_num_threads(1)
    if fault is not None:
        arm(fault)
    sys.argv = ["slime-ray", "train", *arguments]
    main()


def arm(fault: Fault) -> None:
    """Have a fault strike this process."""
    seen = 0

    def strike() -> None:
        if fault.once is not None:
            try:
                os.close(os.open(fault.once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        time.sleep(fault.delay_s)
        if fault.signal == HANG:
            time.sleep(1e6)
        os.kill(os.getpid(), fault.signal) if fault.signal else os._exit(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _CHANGES or fault.inside not in str(arguments[0]):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if seen == fault.operation:
            threading.Thread(target=strike).start() if fault.delay_s else strike()
        seen += 1
        if fault.count_to is not None:
            descriptor = os.open(fault.count_to, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, str(seen).encode())
            os.close(descriptor)

    sys.addaudithook(hook)
