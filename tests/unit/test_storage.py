"""Files are whole or not there, on a disk and behind a URL, and a bad disk is told in one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from slime_ray.errors import StorageError
from slime_ray.storage import (
    append_text,
    create,
    disk_errors,
    file_hash,
    folder_files,
    free_bytes,
    is_local,
    json_hash,
    place,
    remove,
    remove_empty,
    size_text,
    text_hash,
    used_bytes,
    whole_lines,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on a disk, or one behind a URL."""
    return tmp_path if request.param == "disk" else place(f"memory:/{tmp_path}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_place_is_a_path_or_what_a_url_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert place("runs") == tmp_path / "runs"
    assert place("~/runs") == Path("/home/someone/runs")
    assert is_local(place("runs"))
    remote = place("memory://bucket/runs")
    assert str(remote / "sft") == "memory://bucket/runs/sft"
    assert not is_local(remote)
    assert free_bytes(remote) is None
    assert free_bytes(tmp_path) is not None


def test_what_was_written_is_read(folder: Path) -> None:
    path = folder / "new" / "deep" / "file"
    for data in (b"\0\r\n\xff", b""):
        write_bytes(path, data)
        assert path.read_bytes() == data
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    write_json(path, {"name": "Zoë", "steps": [1, 2]})
    assert json.loads(path.read_bytes()) == {"name": "Zoë", "steps": [1, 2]}
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_write_that_fails_in_its_middle_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_bytes(path, b"n" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (path.read_bytes() if path.exists() else None) == before
    assert names(tmp_path) == (["file"] if before is not None else [])


def test_a_write_that_is_not_safe_on_the_disk_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_is_created_once(folder: Path) -> None:
    path = folder / "new" / "lease"
    assert create(path, b"first")
    assert not create(path, b"second")
    assert path.read_bytes() == b"first"


def test_of_many_creators_one_is_first(tmp_path: Path) -> None:
    start, won = threading.Barrier(8), []

    def contend(number: int) -> None:
        for turn in range(20):
            start.wait()
            if create(tmp_path / str(turn), bytes([number])):
                won.append((turn, number))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, _ in won) == list(range(20))
    assert all((tmp_path / str(turn)).read_bytes() == bytes([number]) for turn, number in won)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "there is no space left on the disk; free some, or set runs_dir to another disk"),
        (errno.EDQUOT, "the disk quota is used up; free some space, or set runs_dir to another disk"),
        (errno.EROFS, "the disk is read-only; set runs_dir to a folder that can be written"),
        (errno.EACCES, "permission denied; set runs_dir to a folder that can be written"),
    ],
)
def test_what_is_wrong_with_a_disk_is_one_sentence(number: int, sentence: str) -> None:
    runs, file = Path("/runs"), "/runs/sft/metrics.jsonl"
    ending = f"{sentence}; what was finished is kept, the same command goes on"
    raised = [
        (OSError(number, os.strerror(number), file), file),
        (OSError(number, os.strerror(number)), runs),
        (SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"), runs),
    ]
    for error, where in raised:
        with pytest.raises(StorageError) as found, disk_errors(runs):
            raise error
        assert str(found.value) == f"{where}: {ending}"
        assert found.value.__cause__ is None


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/runs/x"),
        OSError("no number"),
        SafetensorError("Error while deserializing header: invalid header length"),
        SafetensorError("I/O error: No such file or directory (os error 2)"),
        ValueError("No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_what_is_wrong_with_the_program_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as found, disk_errors(Path("/runs")):
        raise error
    assert found.value is error


def test_a_line_that_is_being_written_is_left_for_later(folder: Path) -> None:
    path = folder / "lines"
    assert whole_lines(path) == []
    write_text(path, "one\ntw")
    assert whole_lines(path) == ["one"]
    # What a crash cut short stays a line of its own.
    append_text(path, "two\n\nthree\u2028and\x85a half\n")
    append_text(path, "four\n")
    assert whole_lines(path) == ["one", "tw", "two", "three\u2028and\x85a half", "four"]
    write_text(path, "one")
    assert whole_lines(path) == []


def test_a_line_that_ends_inside_a_letter_is_left_for_later(folder: Path) -> None:
    write_bytes(folder / "lines", "one\ntwö".encode()[:-1])
    assert whole_lines(folder / "lines") == ["one"]


def test_files_and_folders_are_removed_and_nothing_beside_them(folder: Path) -> None:
    for name in ("run/a", "run/deep/b", "run-2/a", "file"):
        write_text(folder / name, name)
    remove(folder / "file")
    remove(folder / "run")
    remove(folder / "absent")
    assert names(folder) == ["run-2"]
    assert (folder / "run-2" / "a").read_text() == "run-2/a"


def test_a_link_is_removed_and_not_what_it_shows(tmp_path: Path) -> None:
    write_text(tmp_path / "kept" / "a", "")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link")
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["a"]


def test_a_folder_is_removed_only_if_it_is_empty(tmp_path: Path) -> None:
    write_text(tmp_path / "full" / "a", "")
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "absent"):
        remove_empty(tmp_path / name)
    assert names(tmp_path) == ["full"]


def test_a_folders_files_are_told_by_size_and_content(folder: Path) -> None:
    assert used_bytes(folder / "absent") == 0
    write_text(folder / "b", "four")
    write_text(folder / "deep" / "a", "x")
    write_text(folder / ".hidden", "123")
    expected = {"b": "four", "deep/a": "x"}
    assert folder_files(folder) == {
        name: {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for name, text in expected.items()
    }
    assert list(folder_files(folder)) == ["b", "deep/a"]
    assert file_hash(folder / "b") == hashlib.sha256(b"four").hexdigest()
    assert used_bytes(folder) == 8


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (56_789, "56.8 kB"),
        (999_000, "999 kB"),
        (1_000_000, "1 MB"),
        (2.5e9, "2.5 GB"),
        (7e12, "7 TB"),
    ],
)
def test_sizes_are_told_as_people_read_them(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("size", "text"), [(999_999, "1 MB"), (999.9e6, "1 GB"), (1234e12, "1,234 TB")])
def test_sizes_that_round_up_are_told_in_the_next_unit(size: float, text: str) -> None:
    assert size_text(size) == text


def test_a_hash_tells_texts_apart_and_not_the_order_of_keys() -> None:
    lists = [[], [""], ["", ""], ["ab"], ["a", "b"], ["b", "a"], ["1:a"]]
    assert len({text_hash(texts) for texts in lists}) == len(lists)
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1})
    assert json_hash({"a": 1}) != json_hash({"a": 1.5})
