"""One writer at a time: a numbered lease in a run's folder, kept alive by a counter.

Lease number n+1 is created exclusively by whoever finds lease n released or dead, so two never hold one. The holder
raises a counter in its file; it is dead when the counter stands still for a while on the onlooker's own clock, or, on
the same machine, when its process is gone. No lock, no rename and no wall clock: object stores have none of these.
The holder's file also carries its wish to the workers that write for it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from slime_ray.errors import RunError, StorageError
from slime_ray.storage import create, names, read_bytes, remove, remove_empty, write_bytes

BEAT_S = 2.0
# A counter that stands still for so long belongs to a holder that is dead, or cut off for good.
DEAD_AFTER_S = 60.0

# What the holder asks of the process that trains; "lost": the lease is another's now.
Wish = Literal["", "checkpoint", "stop", "lost"]


class Holder(BaseModel):
    """The process that holds a lease; `machine` and `started` tell it from another one with its number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    machine: str
    started: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), started=_started(os.getpid()))

    def alive(self) -> bool | None:
        """Whether the process still runs; None where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        return bool(self.started) and _started(self.pid) == self.started


class Entry(BaseModel):
    """What a lease's file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: Holder
    token: str = ""
    beat: int = 0
    wish: Wish = ""
    wishes: int = 0
    released: bool = False


class Lease:
    """A lease that this process holds; a thread keeps it alive until it is released."""

    def __init__(self, folder: Path, number: int, entry: Entry) -> None:
        """Start keeping a lease alive that `acquire` has just created."""
        self.folder = folder
        self.number = number
        self._entry = entry
        self._lost = False
        self._lock = threading.RLock()  # a signal handler may ask while its own thread asks
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def wish(self) -> Wish:
        """What was asked for last, in this process."""
        return "lost" if self._lost or self._ended.is_set() else self._entry.wish

    @property
    def token(self) -> str:
        """Tells this lease from another one of its number."""
        return self._entry.token

    @property
    def wishes(self) -> int:
        """How often something was asked for."""
        return self._entry.wishes

    def look(self) -> Wish:
        """The wish, with a fresh look at whether the lease is still ours: before something is made final."""
        with self._lock, suppress(OSError, StorageError):
            self._check()
        return self.wish

    def ask(self, wish: Literal["checkpoint", "stop"]) -> None:
        """Ask the process that trains, wherever it runs, for a checkpoint, or to stop after its step."""
        with self._lock:
            if self._entry.wish != "stop":  # which asks for a checkpoint too
                self._update(wish=wish, wishes=self._entry.wishes + 1)

    def release(self) -> None:
        """Let go: whoever waits may take the run over at once."""
        self._ended.set()
        self._thread.join()
        with self._lock:
            if not self._lost:
                self._update(released=True)

    def forget(self) -> None:
        """Let go and leave no trace: of a run that has not begun to train."""
        self._ended.set()
        self._thread.join()
        with self._lock:
            if not self._lost:
                self._lost = True
                remove(_file(self.folder, self.number))
                remove_empty(self.folder)
                remove_empty(self.folder.parent)

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._lock, suppress(OSError, StorageError):  # storage that fails for a moment costs no lease
                self._check()
                if self._lost:
                    return
                self._update(beat=self._entry.beat + 1)

    def _check(self) -> None:
        written = read(self.folder, self.number)
        if newest(self.folder) != self.number or (written is not None and written.token != self.token):
            self._lost = True

    def _update(self, **changes: object) -> None:
        self._entry = self._entry.model_copy(update=changes)
        with suppress(OSError, StorageError):  # storage that goes on failing stops the run where it writes
            write_bytes(_file(self.folder, self.number), self._entry.model_dump_json().encode())


class LeaseReader:
    """The holder's wishes, followed by a thread of another process that writes on its behalf."""

    def __init__(self, folder: Path, number: int, token: str) -> None:
        """Args: the run's lease folder, and the number and token of the lease that this process works under."""
        self._folder, self._number, self._token = folder, number, token
        self.wish: Wish = ""
        self.wishes = 0
        self._watch = BeatWatch()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="lease reader", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while self.look() != "lost":
            time.sleep(BEAT_S / 2)

    def look(self) -> Wish:
        """The wish, with a fresh look at whether the lease still counts."""
        with self._lock, suppress(OSError, StorageError):  # the next look may see more
            entry = read(self._folder, self._number)
            passed = newest(self._folder) != self._number
            if passed or self._watch.alive(entry) is False or (entry and not self._is_ours(entry)):
                self.wish = "lost"
            elif entry is not None and self.wish != "lost":  # None: caught while it is written
                self.wish, self.wishes = entry.wish, entry.wishes
        return self.wish

    def _is_ours(self, entry: Entry) -> bool:
        return entry.token == self._token and not entry.released


class BeatWatch:
    """Tells from a counter, on this process's own clock, whether its holder lives."""

    def __init__(self) -> None:
        self._beat: int | None = None
        self._looked: float | None = None
        self._still = 0.0

    def alive(self, entry: Entry | None) -> bool | None:
        """To be asked again and again with what the file says now, None for a file that cannot be read.

        Returns:
            None while it is not known: the holder is on another machine, and its counter was not yet seen to move.
        """
        seen = entry.holder.alive() if entry is not None else None
        if seen is not None:
            return seen
        beat, now = entry.beat if entry is not None else -1, time.monotonic()
        first = self._looked is None
        # A long time in which nobody looked, since this process slept or the storage was away, says little.
        self._still += 0.0 if self._looked is None else min(now - self._looked, 2 * BEAT_S)
        self._looked = now
        if first or beat != self._beat:
            self._beat, self._still = beat, 0.0
            return None if first or entry is None else True
        return False if self._still > DEAD_AFTER_S else None


def acquire(
    folder: Path,
    *,
    what: str,
    wait: bool,
    say: Callable[[str], None],
    hint: str = "wait for it with --wait, or stop that process",
) -> Lease:
    """Take the lease of a run, from a dead holder too.

    Args:
        folder: where the run's leases lie.
        what: the run's name, for messages.
        wait: wait for a living holder to let go; otherwise leave.
        say: is given a sentence before a wait begins.
        hint: what to do about a living holder.

    Raises:
        RunError: another process holds the run.
    """
    watch, told, asked = BeatWatch(), False, False
    while True:
        number = newest(folder)
        entry = read(folder, number) if number else None
        alive = watch.alive(entry) if number else False
        if alive is False or (entry is not None and entry.released):
            lease = _take(folder, number + 1, after=entry)
            if lease is not None:
                return lease
        elif alive and entry is not None and not told:
            held = f"{what} is held by process {entry.holder.pid} on {entry.holder.host}"
            if not wait:
                raise RunError(f"{held}; {hint}")
            say(f"{held}; waiting for it")
            told = True
        elif alive is None and not asked:
            say(f"{what} may be held by a process elsewhere; looking for up to {DEAD_AFTER_S:.0f} s whether it lives")
            asked = True
        time.sleep(BEAT_S / 4)


def newest(folder: Path) -> int:
    """The number of the lease that counts, 0 where there is none."""
    return max(_numbers(folder), default=0)


def _numbers(folder: Path) -> list[int]:
    return [int(stem) for name in names(folder) if (stem := Path(name).stem).isdigit()]


def read(folder: Path, number: int) -> Entry | None:
    """What a lease's file says; None where it is gone, or caught while it is written."""
    try:
        return Entry.model_validate_json(read_bytes(_file(folder, number)))
    except (FileNotFoundError, ValidationError):
        return None


def held_by(folder: Path) -> Holder | None:
    """Who holds a run now, as far as one look tells: a dead holder on another machine is not told from a living one."""
    entry = read(folder, newest(folder))
    if entry is None or entry.released or entry.holder.alive() is False:
        return None
    return entry.holder


def _take(folder: Path, number: int, *, after: Entry | None) -> Lease | None:
    """Create a lease's file; None where someone else was first.

    Args:
        folder: where the run's leases lie.
        number: of the new lease.
        after: what the lease before it said when it was found released or dead.
    """
    entry = Entry(holder=Holder.here(), token=uuid.uuid4().hex)
    try:
        if not create(_file(folder, number), entry.model_dump_json().encode()):
            return None
    except FileNotFoundError:  # the folder was removed with a run that had not begun
        return None
    # Meanwhile someone may have gone on, or begun again below this number.
    before = read(folder, number - 1)
    if newest(folder) != number or (before is not None and before != after):
        remove(_file(folder, number))
        return None
    for earlier in _numbers(folder):
        if earlier < number:
            remove(_file(folder, earlier))
    return Lease(folder, number, entry)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _machine() -> str:
    """This boot of this machine and the space its process numbers are from; empty where neither is told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in ticks of its machine; empty if there is none, or it is dead and not collected."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]
