"""Copies between this machine and what lies behind URLs, for libraries that know disks alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from upath import UPath

from slime_ray.storage import (
    cache_home,
    disk_errors,
    file_state,
    is_local,
    is_url,
    remote_files,
    remove,
    text_hash,
    unseen,
)


def fetch(place: Path) -> Path:
    """A file or folder itself if it is local, else a copy of it on this machine, made once for the files as they are.

    Raises:
        FileNotFoundError: there is nothing of this name.
    """
    if is_local(place):
        return place
    remote = cast(UPath, place)
    found = remote_files(place)
    if not found:
        raise FileNotFoundError(str(place))
    copy = cache_home() / text_hash([str(place), *(f"{name} {file_state(found[name])}" for name in sorted(found))])[:32]
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=copy.parent) as unfinished:
            if remote.path in found:
                remote.fs.get_file(remote.path, f"{unfinished}/copy")
            else:
                remote.fs.get(remote.path, f"{unfinished}/copy", recursive=True)
            with suppress(OSError):  # another process made the same copy
                Path(unfinished, "copy").rename(copy)
    return copy


def local_name(name: str) -> str:
    """A name that a library may open: that of a local copy for a URL, any other as it is."""
    return str(fetch(unseen(name))) if is_url(name) else name


@contextmanager
def new_folder(folder: Path, *, last: str | None = None) -> Iterator[Path]:
    """Inside, a local folder to write into; in the end it is `folder`, whatever was there before.

    Args:
        folder: where it lies in the end.
        last: the file that makes it whole; it is the first to be removed and the last to be there.
    """
    if last is not None:
        remove(folder / last)
    remove(folder)
    if is_local(folder):
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        with disk_errors(Path(temporary), setting="TMPDIR"):
            yield Path(temporary)
        upload(Path(temporary), folder, last=last)


def upload(local: Path, folder: Path, *, last: str | None = None) -> None:
    """Copy a local folder's files behind a URL, one of them after all others."""
    remote = cast(UPath, folder)
    for path in sorted(local.rglob("*"), key=lambda path: (path.name == last, path)):
        if path.is_file():
            target = remote / path.relative_to(local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            remote.fs.put_file(str(path), target.path)
