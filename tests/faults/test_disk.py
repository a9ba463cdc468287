"""Disks that are full, too small, read-only or not ours: one sentence, and nothing that was finished is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slime_ray.checkpoints import read_checkpoints
from slime_ray.runs import Run
from tests.faults.harness import Ended, Fault, Start, assert_same_outcome, run_of, wait_until

IN_STEP_7 = 8
ROOM = 12 * 2**20


def mount(folder: Path, options: str) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, f"size={ROOM}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(file: Path) -> None:
    """Let a file take all the room that is left."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(b"\0" * 4096):
            pass


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    line = ended.err.splitlines()[-1]
    assert ended.code == 2, ended.err
    assert line.startswith("error: ")
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in line


def test_a_disk_that_is_full_costs_the_steps_since_the_last_checkpoint(
    disk: Path, recipe: Path, start: Start, undisturbed: Run
) -> None:
    place = f"runs_dir={disk / 'runs'}"
    run = run_of(recipe, place)
    first = start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7, signal=signal.SIGSTOP))
    wait_until(first.stopped)
    ballast = disk / "ballast"
    fill(ballast)
    first.send(signal.SIGCONT)
    assert_one_sentence(first.wait(), str(disk), "there is no space left on the disk; free some, or set runs_dir to")
    kept, refused = read_checkpoints(run.checkpoints, run=run.hash)
    assert refused == []
    assert kept[-1].step == 6
    assert kept[-1].damage() is None
    ballast.unlink()
    again = start(recipe, place).wait()
    assert again.code == 0, again.err
    assert_same_outcome(run, undisturbed)


def test_a_run_that_cannot_fit_is_refused_before_it_starts(disk: Path, recipe: Path, start: Start) -> None:
    place = f"runs_dir={disk / 'runs'}"
    (disk / "ballast").write_bytes(b"\0" * (ROOM - 2**19))
    ended = start(recipe, place).wait()
    assert_one_sentence(ended, "the run may need ", " are free; free ", " more, lower checkpoint.keep_last, or set")
    assert not run_of(recipe, place).folder.exists()


def test_a_disk_that_is_read_only_is_named(disk: Path, recipe: Path, start: Start) -> None:
    runs = disk / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert_one_sentence(start(recipe, f"runs_dir={runs}").wait(), f"runs_dir = '{runs}'", "expected a writable folder")


def test_a_run_folder_that_must_not_be_written_is_named(recipe: Path, place: str, start: Start) -> None:
    run = run_of(recipe, place)
    assert start(recipe, place, fault=Fault(str(run.metrics_file), IN_STEP_7)).wait().code == -signal.SIGKILL
    protected = [run.folder, *(path for path in run.folder.rglob("*") if path.is_dir())]
    if subprocess.run(["chattr", "+i", *protected], capture_output=True).returncode:
        pytest.skip("this file system has no immutable folders, and root may write everywhere")
    try:
        ended = start(recipe, place).wait()
    finally:
        subprocess.run(["chattr", "-i", *protected], check=True)
    assert_one_sentence(ended, str(run.folder), "set runs_dir to a folder that can be written")
