"""From an entry of `data.train` (a file, a folder, a URL, a hub name) to raw rows that know where they stand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from slime_ray.data.hub import HubEntry
from slime_ray.errors import DataError
from slime_ray.storage import file_hash, is_local, is_url, named

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
"""The files that are read. JSON and JSON Lines are told apart by their content."""

# Of a file behind a URL, whose own reading of lines is slow.
_BUFFER = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One object of a file; ``source`` is ``path:line`` (JSON), ``path:row`` (Parquet) or ``org/name:split:row``."""

    fields: dict[str, Any]
    source: str


def read_rows(entry: str) -> Iterator[SourceRow]:
    """All rows of an entry, in order; of a folder, those of the supported files in it, sorted by name.

    Raises:
        DataError: the entry does not exist, is empty, is no such file, or holds something that is no object.
    """
    hub = _hub_entry(entry)
    if hub is not None:
        for number, fields in enumerate(hub.rows(), start=1):
            yield SourceRow(_from_arrow(fields), f"{hub.name}:{hub.split}:{number}")
        return
    for path in _files(entry):
        row = None
        for row in _file_rows(path):
            yield row
        if row is None:
            raise DataError(f"{path}: is empty; expected at least one row")


def content_hash(entries: Sequence[str]) -> str:
    """SHA-256 over the bytes of all files in order, whatever their names; a hub entry gives name, split and commit.

    Raises:
        DataError: an entry does not exist.
    """
    whole = hashlib.sha256()
    for entry in entries:
        hub = _hub_entry(entry)
        if hub is not None:
            whole.update(hashlib.sha256(f"{hub.name}:{hub.split}@{hub.commit()}".encode()).digest())
            continue
        for path in _files(entry):
            try:
                whole.update(bytes.fromhex(file_hash(path)))
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return whole.hexdigest()


def _hub_entry(entry: str) -> HubEntry | None:
    if is_url(entry) or Path(entry).exists() or entry.lower().endswith(SUFFIXES):
        return None
    return HubEntry.parse(entry)


def _files(entry: str) -> list[Path]:
    path = named(entry)
    if path.is_dir():
        files = sorted(
            (file for file in path.iterdir() if _is_supported(file) and file.is_file()), key=lambda file: file.name
        )
        if not files:
            raise DataError(f"{entry}: no file in this folder is one of {', '.join(SUFFIXES)}")
        return files
    if not path.exists():
        if is_url(entry):
            raise DataError(f"{entry}: there is no such file or folder")
        raise DataError(
            f"{entry}: neither a file or folder here nor a reachable hub name (org/name[:split][@revision])"
        )
    if not _is_supported(path):
        raise DataError(f"{entry}: files of this kind are not read; expected one of {', '.join(SUFFIXES)}")
    return [path]


def _is_supported(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _file_rows(path: Path) -> Iterator[SourceRow]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    with _opened(path) as file:
        rows = _array_rows(path, file.read()) if _begins_with_bracket(file) else _line_rows(path, file)
        yield from rows


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked."""
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, raw if is_local(path) else io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER))
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix.lower() == ".gz" else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _begins_with_bracket(file: BinaryIO) -> bool:
    """Whether the first character that is no white space opens an array; leaves the file at its beginning."""
    first = b""
    while chunk := file.read(4096):
        first = chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if first:
            break
    file.seek(0)
    return first == b"["


def _line_rows(path: Path, file: BinaryIO) -> Iterator[SourceRow]:
    # A binary file is split on b"\n" alone; str.splitlines would also split at U+2028 inside a text.
    for number, line in enumerate(file, start=1):
        text = _decoded(path, line, first_line=number).rstrip(" \t\r\n")
        if not text:
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(_broken(f"{path}:{number}", error)) from None
        yield SourceRow(_object(value, f"{path}:{number}"), f"{path}:{number}")


def _array_rows(path: Path, data: bytes) -> Iterator[SourceRow]:
    """Element by element, since only so a row's line is known."""
    text = _decoded(path, data, first_line=1)
    decode = json.JSONDecoder().raw_decode
    position, line, counted = _after_space(text, text.index("[") + 1), 1, 0
    if text[position : position + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(_broken(f"{path}:{error.lineno}", error)) from None
        except (ValueError, RecursionError) as error:
            raise DataError(_broken(f"{path}:{line}", error)) from None
        yield SourceRow(_object(value, f"{path}:{line}"), f"{path}:{line}")
        position = _after_space(text, position)
        mark = text[position : position + 1]
        position = _after_space(text, position + 1)
        if mark == "]" and position >= len(text):
            return
        if mark != ",":
            at = text.count("\n", 0, position) + 1
            problem = "text after the array's end" if mark == "]" else "expected ',' or ']' after a row"
            raise DataError(f"{path}:{at}: broken JSON ({problem})")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(path if is_local(path) else raw) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield SourceRow(_from_arrow(fields), f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _from_arrow(fields: dict[str, Any]) -> dict[str, Any]:
    """Arrow gives every message all keys that any message has; those that it did not have are null."""
    return {key: _without_nulls(value) for key, value in fields.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _decoded(path: Path, data: bytes, *, first_line: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        byte = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise DataError(
            f"{path}:{line}: byte {byte} of the line (0x{data[error.start]:02x}) is not UTF-8; expected a file in UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if first_line == 1 else text


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kinds = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
        raise DataError(f"{source}: the row is {kinds.get(type(value), 'a number')}; expected an object {{...}}")
    return value


def _broken(source: str, error: Exception) -> str:
    what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return f"{source}: broken JSON ({what}); expected an array of objects, or one object in each line"
