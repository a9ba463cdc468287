"""Whether this worker's training thread still gets on: found out by another thread, which ends a worker that hangs.

A worker that waits for others in a collective does not hang: the one that they wait for does.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class _Pulse:
    at: float | None = None  # None while others are waited for, or nothing is trained yet
    thread: int | None = None


def beat() -> None:
    """Say that the training thread got on."""
    _Pulse.at, _Pulse.thread = time.monotonic(), threading.get_ident()


@contextmanager
def waiting() -> Iterator[None]:
    """Inside, this worker waits for the others, or for a disk."""
    counted = _Pulse.at is not None
    _Pulse.at = None
    yield
    if counted:
        beat()


def rest() -> None:
    """Say that training is over: what comes then may take its time."""
    _Pulse.at = None


def watch(limit_s: float, *, say: Callable[[str], None]) -> None:
    """Have a thread end this process when the training thread hangs for longer than `limit_s`, and say where."""

    def look() -> None:
        while True:
            time.sleep(min(1.0, limit_s / 4))
            since = _Pulse.at
            if since is not None and time.monotonic() - since > limit_s:
                process = f"process {os.getpid()} on {socket.gethostname()}"
                sentence = f"{process} hung for {limit_s:.0f} s {_where()}; it was ended"
                # The disk that the sentence goes to may be what hangs.
                end = threading.Timer(10.0, os._exit, [1])
                end.daemon = True
                end.start()
                with suppress(OSError):
                    say(sentence)
                os._exit(1)

    threading.Thread(target=look, name="pulse", daemon=True).start()


def _where() -> str:
    frame = sys._current_frames().get(_Pulse.thread or 0)
    if frame is None:
        return "in a thread that is gone"
    last = traceback.extract_stack(frame)[-1]
    return f"in {last.name} ({last.filename}:{last.lineno})"
