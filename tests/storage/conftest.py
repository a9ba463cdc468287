"""A server that speaks S3, and buckets in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.s3_server import S3Server, environment, forget_contacts, make_bucket


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """An S3-compatible server."""
    started = S3Server()
    yield started
    started.stop()


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, in an environment that knows the server."""
    for name, value in environment(server.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLIME_RAY_CACHE", str(tmp_path / "cache"))
    forget_contacts()
    name = f"test-{uuid.uuid4().hex[:12]}"
    make_bucket(server.url, name)
    return f"s3://{name}"
