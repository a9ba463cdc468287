"""A store behind a URL: worked on in a copy on this machine, which is put back every few seconds and at the end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import cast

from upath import UPath

from slime_ray.errors import RunError, StorageError
from slime_ray.evaluation.requests.store import Store
from slime_ray.storage import cache_home, file_state, read_bytes, remove, text_hash, write_bytes, write_text

# Between two copies; what a lost machine can lose.
EVERY_S = 5.0
# A copy that takes long is made less often.
_SHARE = 4


@contextmanager
def remote_store(file: Path, *, may_write: Callable[[], bool]) -> Iterator[Store]:
    """The store in a file behind a URL, for the one process that may write it.

    What an earlier command on this machine could not put there, since it was killed or storage was away, counts, as
    long as nobody else has put anything there.

    Args:
        file: behind a URL.
        may_write: asked before each copy is put there.

    Raises:
        StorageError: it cannot be read or, in the end, written.
        RunError: in the end another process has it.
    """
    folder = cache_home() / "stores" / text_hash([str(file)])[:32]
    local, note = folder / file.name, folder / "behind"
    behind = _state(file)
    left = local.exists() and _noted(note) == behind
    if not left:
        remove(folder)
        folder.mkdir(parents=True)
        write_text(note, behind)
        with suppress(FileNotFoundError):
            write_bytes(local, read_bytes(file))  # whole, or the next command would take a part for what was left
    with Store(local) as store:
        copies = _Copies(local, file, note, may_write, put=not left)
        try:
            yield store
        finally:
            copies.end()
    remove(folder)


def _state(file: Path) -> str:
    """What tells the content of a file behind a URL from any other; nothing where there is none."""
    remote = cast(UPath, file)
    try:
        return file_state(remote.fs.info(remote.path))
    except FileNotFoundError:
        return ""


def _noted(note: Path) -> str:
    return note.read_text(encoding="utf-8") if note.exists() else ""


class _Copies:
    """A thread that puts copies of a SQLite file behind a URL while there is something new in it.

    Args:
        local: the SQLite file.
        file: where its copies go.
        note: where it is noted what lies there.
        may_write: asked before each copy.
        put: whether what is in it now lies there already.
    """

    def __init__(self, local: Path, file: Path, note: Path, may_write: Callable[[], bool], *, put: bool) -> None:
        self._local, self._file, self._note, self._may_write = local, file, note, may_write
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="store copies", daemon=True)
        with closing(sqlite3.connect(local)) as connection:
            self._seen = self._changes(connection) if put else None
        self._thread.start()

    def end(self) -> None:
        """Put the last copy there."""
        self._ended.set()
        self._thread.join()
        with closing(sqlite3.connect(self._local)) as connection:
            if not self._copy(connection):
                raise RunError(
                    f"{self._file}: another process holds this evaluation now; what was answered in the last seconds "
                    "was not kept"
                )

    def _follow(self) -> None:
        wait_s = EVERY_S
        while not self._ended.wait(wait_s):
            began = time.monotonic()
            # What fails now is tried again, in the end aloud.
            with suppress(StorageError, OSError, sqlite3.Error), closing(sqlite3.connect(self._local)) as connection:
                self._copy(connection)
            wait_s = max(EVERY_S, _SHARE * (time.monotonic() - began))

    def _copy(self, connection: sqlite3.Connection) -> bool:
        """Put a consistent copy there if something is new; whether that was allowed."""
        changes = self._changes(connection)
        if changes == self._seen:
            return True
        if not self._may_write():
            return False
        copy = self._local.with_name("copy")
        remove(copy)
        with closing(sqlite3.connect(copy)) as target:
            connection.backup(target)
        write_bytes(self._file, copy.read_bytes())
        write_text(self._note, _state(self._file))
        self._seen = changes
        return True

    @staticmethod
    def _changes(connection: sqlite3.Connection) -> int:
        """Rises with every outcome that is kept: each is one request that was paid."""
        return connection.execute("SELECT coalesce(sum(requests), 0) FROM payments").fetchone()[0]
