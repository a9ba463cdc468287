"""Files on S3 are whole or not there, seen at once, created once; failures that pass are waited out."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from slime_ray import s3, storage
from slime_ray.copies import fetch, new_folder, upload
from slime_ray.errors import StorageError
from slime_ray.storage import (
    append_text,
    create,
    file_hash,
    folder_files,
    names,
    place,
    read_bytes,
    remove,
    used_bytes,
    whole_lines,
    write_bytes,
    write_text,
)
from tests.storage.s3_server import KEY, SECRET, S3Server, forget_contacts


def put(environ: dict[str, Any]) -> bool:
    return environ["REQUEST_METHOD"] == "PUT"


def for_a_while(server: S3Server, status: int, *, requests: int) -> Any:
    """Answer the next requests with a status."""
    left = requests

    def answer(_: dict[str, Any]) -> int | None:
        nonlocal left
        left -= 1
        return status if left >= 0 else None

    return server.answering(answer)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails is given up after half a second."""
    monkeypatch.setattr(s3, "PATIENCE_S", 0.5)
    monkeypatch.setattr(s3, "FIRST_PATIENCE_S", 0.2)
    monkeypatch.setattr(s3, "_BETWEEN_S", 0.1)


def test_files_and_folders(bucket: str, tmp_path: Path) -> None:
    folder = place(f"{bucket}/runs")
    assert names(folder) == []
    assert whole_lines(folder / "lines") == []
    write_bytes(folder / "new" / "deep" / "file", b"\0\r\n\xff")
    assert read_bytes(folder / "new" / "deep" / "file", 2) == b"\n\xff"
    append_text(folder / "lines", "one\n")
    write_text(folder / "lines", "one\ntw")
    append_text(folder / "lines", "two\n")
    assert whole_lines(folder / "lines") == ["one", "tw", "two"]
    assert sorted(names(folder)) == ["lines", "new"]
    assert (folder / "new").is_dir()
    assert not (folder / "new").is_file()
    assert used_bytes(folder) == 15
    assert [path.name for path in folder.glob("li*")] == ["lines"]
    # In an upload the named file is the last one.
    (tmp_path / "local" / "deep").mkdir(parents=True)
    for name in ("b", "deep/c", "a"):
        (tmp_path / "local" / name).write_text(name)
    upload(tmp_path / "local", folder / "copy", last="a")
    assert folder_files(folder / "copy") == folder_files(tmp_path / "local")
    with new_folder(folder / "copy", last="a") as here:
        (here / "d").write_text("d")
        assert names(folder / "copy") == []
    assert names(folder / "copy") == ["d"]
    assert (fetch(folder / "copy") / "d").read_text() == "d"
    write_text(folder / "copy" / "d", "changed")
    assert (fetch(folder / "copy") / "d").read_text() == "changed"
    remove(folder / "new")
    assert sorted(names(folder)) == ["copy", "lines"]


def test_a_hash_is_of_the_content_as_it_is(bucket: str, server: S3Server, tmp_path: Path) -> None:
    path, here = place(f"{bucket}/data.jsonl"), tmp_path / "data.jsonl"
    for content in (b"one", b"two"):
        write_bytes(path, content)
        write_bytes(here, content)
        assert file_hash(path) == file_hash(here)
    before = server.requests["GET"]
    assert file_hash(path) == file_hash(here)
    assert server.requests["GET"] == before


_WRITER = """
import sys
from slime_ray.storage import place, write_text
for line in sys.stdin:
    write_text(place(line.strip()), "there")
    print("written", flush=True)
"""


def test_what_another_process_writes_is_seen_at_once(bucket: str) -> None:
    folder = place(f"{bucket}/runs")
    with subprocess.Popen([sys.executable, "-c", _WRITER], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for number in range(3):
            new = folder / f"run-{number}" / "manifest.json"
            assert not new.exists()
            assert not new.parent.is_dir()
            assert len(names(folder)) == len(list(folder.iterdir()) if number else []) == number
            other.stdin.write(f"{new}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "written\n"
            assert new.is_file()
            assert new.parent.is_dir()
            assert len(names(folder)) == len(list(folder.iterdir())) == len(list(folder.glob("run-*"))) == number + 1
        other.stdin.close()


def test_of_many_creators_one_is_first(bucket: str) -> None:
    folder, start, won = place(f"{bucket}/lease"), threading.Barrier(6), []

    def contend(number: int) -> None:
        for turn in range(5):
            start.wait()
            if create(folder / str(turn), f"creator {number}".encode()):
                won.append((turn, number))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, _ in won) == list(range(5))
    assert all(read_bytes(folder / str(turn)) == f"creator {number}".encode() for turn, number in won)


def test_a_creator_whose_answer_was_lost_knows_itself(bucket: str, server: S3Server) -> None:
    lost = iter([500])
    with server.forgetting(lambda environ: next(lost, None) if put(environ) else None):
        assert create(place(f"{bucket}/lease/1"), b"mine")
    assert not create(place(f"{bucket}/lease/1"), b"another's")
    # Not every server says which condition of a request was not met.
    with for_a_while(server, 412, requests=1):
        assert not create(place(f"{bucket}/lease/1"), b"another's")
    # S3 itself says 409 to one of two who come at the same instant: it has to ask again.
    with for_a_while(server, 409, requests=1):
        assert create(place(f"{bucket}/lease/2"), b"mine")


def test_an_upload_in_parts_whose_last_answer_was_lost(bucket: str, server: S3Server) -> None:
    path, data = place(f"{bucket}/large"), bytes(11 * 2**20)
    # The first request is carried out, and the server does not know of the upload any more when it is asked again.
    lost, known = iter([500]), iter([None])

    def completes(environ: dict[str, Any]) -> bool:
        return environ["REQUEST_METHOD"] == "POST" and "uploadId" in environ["QUERY_STRING"]

    remote: Any = path
    with (
        server.forgetting(lambda environ: next(lost, None) if completes(environ) else None),
        server.answering(lambda environ: next(known, 404) if completes(environ) else None),
    ):
        remote.fs.pipe_file(remote.path, data, chunksize=5 * 2**20)
    assert next(lost, None) is None
    assert read_bytes(path) == data


@pytest.mark.parametrize("status", [500, 503])
def test_what_passes_is_waited_out(status: int, bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_BETWEEN_S", 0.1)
    path = place(f"{bucket}/file")
    for do, expected in [
        (lambda: write_bytes(path, b"data"), None),
        (lambda: read_bytes(path), b"data"),
        (path.is_file, True),
        (lambda: names(path.parent), ["file"]),
        ((path.parent / "absent").exists, False),
    ]:
        with for_a_while(server, status, requests=2):
            assert do() == expected


def test_a_server_that_hangs_is_asked_again(bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3.S3Files, "read_timeout", 0.3)
    forget_contacts()
    path = place(f"{bucket}/file")
    hangs = iter([1.0, 1.0])
    with server.answering(lambda _: time.sleep(next(hangs, 0.0))):
        write_bytes(path, b"data")
    assert read_bytes(path) == b"data"


def test_what_lasts_is_one_sentence(bucket: str, server: S3Server, impatient: None) -> None:
    path = place(f"{bucket}/runs/file")
    write_bytes(path, b"data")
    with server.answering(lambda _: 503):
        for do in (path.is_file, path.exists, lambda: read_bytes(path), lambda: write_bytes(path, b"new")):
            with pytest.raises(StorageError) as found:
                do()
            assert str(found.value).startswith(f"{bucket}/runs/file: {server.url} did not answer for ")
            assert str(found.value).endswith(" s (HTTP 503); what was finished is kept, the same command goes on")
    assert read_bytes(path) == b"data"


def test_storage_that_was_given_up_is_not_waited_for_again(
    bucket: str, server: S3Server, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(f"{bucket}/file")
    write_bytes(path, b"data")
    monkeypatch.setattr(s3, "PATIENCE_S", 2.0)

    def waited() -> float:
        began = time.monotonic()
        with pytest.raises(StorageError):
            read_bytes(path)
        return time.monotonic() - began

    with server.answering(lambda _: 503):
        assert waited() > 2
        assert waited() < 2
        # The sentence has the whole time.
        time.sleep(1)
        with pytest.raises(StorageError, match=r" did not answer for ([3-9]|\d\d) s "):
            read_bytes(path)
    assert read_bytes(path) == b"data"
    with server.answering(lambda _: 503):
        assert waited() > 2


def refused(name: str) -> str:
    began = time.monotonic()
    with pytest.raises(StorageError) as found:
        place(name)
    assert time.monotonic() - began < 10
    told = str(found.value)
    assert SECRET not in told
    assert KEY not in told
    return told


def test_mistakes_are_told_within_seconds(bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("s3://test-absent/runs") == "s3://test-absent: there is no such bucket; make it"
    assert "Invalid bucket name" in refused("s3://No_Such_Bucket!/runs")
    with server.answering(lambda _: 400):
        assert refused(f"{bucket}/runs") == f"{bucket}/runs: {server.url} refuses the request (400)"
    with server.answering(lambda _: 403):
        assert refused(f"{bucket}/runs").startswith(f"{bucket}/runs: {server.url} refuses access (403)")

    monkeypatch.setattr(s3, "FIRST_PATIENCE_S", 2.0)
    for user, error in (("", "EndpointConnectionError"), (f"someone:{SECRET}@", "HTTPClientError")):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{user}127.0.0.1:9")
        forget_contacts()
        told = refused(f"{bucket}/runs")
        assert told.startswith(f"{bucket}/runs: http://127.0.0.1:9 did not answer for ")
        assert told.endswith(f" s ({error}); look at it, at AWS_ENDPOINT_URL and at the network")

    # A process that another one started for work behind it does not ask first.
    storage.take_as_seen()
    assert str(place(f"{bucket}/runs")) == f"{bucket}/runs"

    monkeypatch.setenv("AWS_ENDPOINT_URL", "somewhere")
    forget_contacts()
    assert refused(f"{bucket}/runs") == (
        f"{bucket}/runs: AWS_ENDPOINT_URL is no address; expected one such as http://host:9000"
    )

    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    forget_contacts()
    assert refused(f"{bucket}/runs") == (
        f"{bucket}/runs: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    )


def test_no_bucket_is_made_by_the_way(bucket: str) -> None:
    folder = storage.unseen("s3://test-absent/runs")
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(StorageError, match=r"^s3://test-absent: there is no such bucket"):
        write_bytes(folder / "file", b"")
    assert "no such bucket" in refused("s3://test-absent/runs")
