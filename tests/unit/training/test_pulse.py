"""A worker that hangs is ended and says where; one that waits, or is done, is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMIT_S = 0.4
START = f"""
    import time
    from slime_ray.training.pulse import beat, rest, waiting, watch
    watch({LIMIT_S}, say=lambda sentence: print(sentence, flush=True))
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its number, its exit code, the sentence that it said, and the lines of its program."""

    pid: int
    code: int
    said: str
    program: Path

    def line_of(self, text: str) -> int:
        """Where a text stands in the program."""
        return next(n for n, line in enumerate(self.program.read_text().splitlines(), 1) if text in line)


def watched(body: str, folder: Path) -> Ended:
    """Run a program whose training thread is watched; it ends with exit code 7 if it is left alone."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(START) + textwrap.dedent(body) + "\nraise SystemExit(7)\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(ROOT)) if p)
    }
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment) as process:
        said, _ = process.communicate(timeout=60)
    return Ended(process.pid, process.returncode, said, program)


def test_a_thread_that_hangs_is_found_and_named(tmp_path: Path) -> None:
    ended = watched(
        """
        def read_from_a_dead_disk():
            time.sleep(60)  # here
        beat()
        read_from_a_dead_disk()
        """,
        tmp_path,
    )
    assert ended.code == 1
    where = f"in read_from_a_dead_disk ({ended.program}:{ended.line_of('# here')})"
    assert ended.said == f"process {ended.pid} on {socket.gethostname()} hung for 0 s {where}; it was ended\n"


def test_the_thread_that_trains_is_named_not_the_first_one(tmp_path: Path) -> None:
    ended = watched(
        """
        import threading
        def train():
            beat()
            while True:
                time.sleep(60)  # here
        threading.Thread(target=train).start()
        time.sleep(60)
        """,
        tmp_path,
    )
    assert ended.code == 1
    assert f" in train ({ended.program}:{ended.line_of('# here')}); " in ended.said


def test_a_thread_that_ended_without_a_word_is_told(tmp_path: Path) -> None:
    ended = watched(
        """
        import threading
        threading.Thread(target=beat).start()
        time.sleep(60)
        """,
        tmp_path,
    )
    assert ended.code == 1
    assert "in a thread that is gone; it was ended" in ended.said


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep({long})",
        "for _ in range(12): beat(); time.sleep({short})",
        "beat()\nwith waiting(): time.sleep({long})",
        "beat()\nwith waiting():\n  with waiting(): pass",
        "beat()\nrest()\ntime.sleep({long})",
    ],
    ids=["not begun", "beating", "waiting", "back from waiting", "resting"],
)
def test_a_thread_that_does_not_hang_is_left_alone(body: str, tmp_path: Path) -> None:
    ended = watched(body.format(long=2.5 * LIMIT_S, short=LIMIT_S / 5), tmp_path)
    assert (ended.code, ended.said) == (7, "")


def test_who_waits_while_resting_rests_on(tmp_path: Path) -> None:
    ended = watched(f"beat()\nrest()\nwith waiting(): pass\ntime.sleep({2.5 * LIMIT_S})", tmp_path)
    assert (ended.code, ended.said) == (7, "")


def test_who_comes_back_from_waiting_is_watched_again(tmp_path: Path) -> None:
    ended = watched("beat()\nwith waiting(): pass\ntime.sleep(60)  # here", tmp_path)
    assert ended.code == 1
    assert f" in <module> ({ended.program}:{ended.line_of('# here')}); " in ended.said
