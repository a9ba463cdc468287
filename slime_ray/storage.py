"""Files in a local folder or behind an fsspec URL: hashed by content, written whole or not at all.

A place is a `pathlib.Path`, or for a URL a `UPath`, which has the same methods. What only one of the two can do
(replace a file in one step, create it exclusively, say how much room is left) is here and nowhere else. What another
process writes behind a URL is seen at once: no listing is kept. How long S3 is waited for is `s3`'s business.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import fsspec
from safetensors import SafetensorError
from upath import UPath

from slime_ray.errors import StorageError

# What is wrong with a disk, not with the program.
_DISK = {
    errno.ENOSPC: "there is no space left on the disk; free some, or set {setting} to another disk",
    errno.EDQUOT: "the disk quota is used up; free some space, or set {setting} to another disk",
    errno.EROFS: "the disk is read-only; set {setting} to a folder that can be written",
    errno.EACCES: "permission denied; set {setting} to a folder that can be written",
    errno.EPERM: "it must not be changed; set {setting} to a folder that can be written",
    errno.EIO: "the disk does not answer; look at it, or set {setting} to another disk",
    errno.EEXIST: "a file is in the way of a folder; set {setting} to a folder that can be written",
    errno.ENOTDIR: "a part of this path is a file; set {setting} to a folder that can be written",
}


# By name, so that it is imported where S3 is used.
fsspec.register_implementation("s3", "slime_ray.s3.S3Files", clobber=True, errtxt="s3fs: pip install 'slime-ray[s3]'")
# Buckets that have answered this process.
_reached: set[str] = set()
_ANY = "any"


def place(name: str) -> Path:
    """The absolute path of a local name, or what a URL such as s3://bucket/runs names; raises as `named`."""
    return named(name) if is_url(name) else Path(name).expanduser().absolute()


def named(name: str) -> Path:
    """The path of a local name as it was given, or what a URL names.

    Raises:
        StorageError: no file system is known for the URL, or its package is not installed; its bucket is not there,
            must not be seen, or does not answer.
    """
    found = unseen(name)
    if not is_local(found):
        _reach(cast(UPath, found))
    return found


def unseen(name: str) -> Path:
    """As `named`, of a place whose bucket was seen before, by whoever started this process."""
    protocol, separator, path = name.partition("://")
    if not separator:
        return Path(name)
    if protocol in ("file", "local"):
        return Path(path)
    try:
        fsspec.get_filesystem_class(protocol)
        return cast(Path, UPath(name.rstrip("/"), use_listings_cache=False))
    except (ImportError, ValueError) as error:
        raise StorageError(f"{name}: no file system for this URL ({error}); install its package") from None


def take_as_seen() -> None:
    """Ask no bucket whether it answers: whoever started this process has, and storage that is away is waited for."""
    _reached.add(_ANY)


def _reach(remote: UPath) -> None:
    """See that a bucket answers, once a process: a mistake is told before anything is waited for or done."""
    bucket = f"{remote.protocol}://{remote.path.partition('/')[0]}"
    if remote.protocol != "s3" or bucket in _reached or _ANY in _reached:
        return
    from slime_ray.s3 import first_contact

    with first_contact(), suppress(FileNotFoundError):
        remote.fs.info(remote.path)
    _reached.add(bucket)


def beside(file: str | Path, name: str) -> Path:
    """What a file means by a name: relative to its own folder, or behind its own URL; a URL or absolute path is that.

    Raises:
        StorageError: as `named`.
    """
    folder = named(str(file)).parent
    if is_url(name):
        return named(name)
    return folder / name if is_local(folder) else (folder / name).resolve()


def is_url(name: str) -> bool:
    """Whether a name is that of a place behind a URL, as s3://bucket/runs is."""
    return "://" in name


def is_local(path: Path) -> bool:
    """Whether a place is on a disk of this machine, or one that looks like it."""
    return isinstance(path, Path)


@contextmanager
def disk_errors(path: Path, *, setting: str = "runs_dir") -> Iterator[None]:
    """Turn what a full, read-only or foreign disk raises inside into one sentence about a place.

    Args:
        path: the place, where the error does not name one itself.
        setting: what decides where it is.

    Raises:
        StorageError: such an error came; any other passes through.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _number(error)
        if number not in _DISK:
            raise
        where = getattr(error, "filename", None) or path
        problem = _DISK[number].format(setting=setting)
        raise StorageError(f"{where}: {problem}; what was finished is kept, the same command goes on") from None


def _number(error: Exception) -> int | None:
    """The system's error number in a message that has no field for it."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; once this returns it survives a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        remote = cast(UPath, path)
        remote.fs.pipe_file(remote.path, data)
        return
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with neighbour.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
        flush(path.parent)
    finally:
        neighbour.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_bytes(path: Path, start: int = 0) -> bytes:
    """A file's bytes from a position on, as they are at one moment: also of a file that is being written anew."""
    if is_local(path):
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    remote = cast(UPath, path)
    return cast(bytes, remote.fs.cat_file(remote.path, start=start or None))


def create(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet; False where someone else was first.

    Args:
        path: the file.
        data: what tells this writer from all others, so that one whose answer was lost knows itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if is_local(path):
            with path.open("xb") as file:
                file.write(data)
        else:
            remote = cast(UPath, path)
            remote.fs.pipe_file(remote.path, data, mode="create")
    except FileExistsError:
        return not is_local(path) and read_bytes(path) == data
    return True


def append_text(path: Path, text: str) -> None:
    """Add lines to the end of a file; after one that a crash cut short they begin on a new line."""
    if not is_local(path):  # where files are whole and nothing can be added
        try:
            written = read_bytes(path)
        except FileNotFoundError:
            written = b""
        torn = bool(written) and not written.endswith(b"\n")
        write_bytes(path, written + b"\n" * torn + text.encode())
        return
    torn = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + text)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that end with a line break: one that is being written is left for later."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    return [line for line in content[: content.rfind(b"\n") + 1].decode().split("\n") if line]


def names(folder: Path) -> list[str]:
    """The names of what lies in a folder; none where there is no such folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if is_local(folder):
            return os.listdir(folder)
        remote = cast(UPath, folder)
        return [str(path).rstrip("/").rpartition("/")[2] for path in remote.fs.ls(remote.path, detail=False)]
    return []


def flush(path: Path) -> None:
    """Have a local file, or the names in a local folder, survive a loss of power."""
    if is_local(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_home() -> Path:
    """Where this machine keeps copies of what lies behind URLs: SLIME_RAY_CACHE, else in the user's cache folder."""
    named = os.environ.get("SLIME_RAY_CACHE")
    return Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/slime-ray").expanduser()


def file_state(info: dict[str, Any]) -> str:
    """What a file system says of a file that changes with its content."""
    return " ".join(str(info.get(key)) for key in ("size", "ETag", "etag", "created", "mtime", "LastModified"))


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if is_local(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    elif path.exists():
        remote = cast(UPath, path)
        remote.fs.rm(remote.path, recursive=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder unless something is in it."""
    if is_local(folder) and folder.is_dir():
        with suppress(OSError):
            folder.rmdir()


def free_bytes(path: Path) -> int | None:
    """Room left where a folder lies; None where nobody says so, as in an object store."""
    return shutil.disk_usage(path).free if is_local(path) else None


def used_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    if not is_local(folder):
        return sum(info["size"] for info in remote_files(folder).values())
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        with suppress(FileNotFoundError):  # a run that is trained removes what it needs no more
            total += path.stat().st_size if path.is_file() else 0
    return total


def size_text(size: float) -> str:
    """A number of bytes as people read it, in units of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:,.0f} TB"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; behind a URL what was read once is remembered under the object's tag."""
    if is_local(path):
        return _digest(path)
    remote = cast(UPath, path)
    state = remote.fs.info(remote.path)
    known = cache_home() / "hashes" / text_hash([str(path), file_state(state)])[:32]
    if "ETag" not in state:
        return _digest(path)
    if not known.exists():
        write_text(known, _digest(path))
    return known.read_text()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def folder_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below a folder, by its path in it; hidden files are left out."""
    if is_local(folder):
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    else:
        sizes = {name: info["size"] for name, info in remote_files(folder).items()}
    shown = sorted(Path(name) for name in sizes if not Path(name).name.startswith("."))
    return {str(name): {"size": sizes[str(name)], "sha256": file_hash(folder / name)} for name in shown}


def remote_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What a file system says of every file below a folder behind a URL, by its path in it."""
    remote = cast(UPath, folder)
    found = cast(dict[str, dict[str, Any]], remote.fs.find(remote.path, detail=True))
    above = remote.path.rstrip("/") + "/"
    return {path.removeprefix(above): info for path, info in found.items() if not path.endswith("/")}


def text_hash(parts: Iterable[str]) -> str:
    """The SHA-256 of some texts, each with its length, so that no two lists of texts give the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return text_hash([json.dumps(value, sort_keys=True)])
