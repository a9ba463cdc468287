"""Requests byte by byte, as no client library would send them."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.served import Serving

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """A response; its status is None where the server closed the connection without one."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """What stands under "error", after a look that it is of OpenAI's form."""
        assert self.headers["content-type"] == "application/json", self.body
        error = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


def request(
    target: str,
    *headers: tuple[str, str],
    method: str = "POST",
    body: bytes = b"",
    sized: bool = True,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request; `sized` adds the length of its body."""
    lines = [f"{method} {target} {version}", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    if sized and body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def json_request(serving: Serving, body: bytes, *headers: tuple[str, str], key: str = "first", **how: Any) -> bytes:
    """A request for a chat with a key and a type."""
    known = [("authorization", f"Bearer {serving.keys[key]}"), ("content-type", "application/json")]
    return request(CHAT, *known, *headers, body=body, **how)


def send(serving: Serving, raw: bytes, *, method: str = "POST") -> Reply:
    """Send bytes, and read one response."""
    with connected(serving, raw) as connection:
        return receive(serving, connection, method=method)


@contextmanager
def connected(serving: Serving, raw: bytes) -> Iterator[socket.socket]:
    """A connection on which something was sent."""
    with socket.create_connection(("127.0.0.1", serving.port), timeout=30) as connection:
        connection.sendall(raw)
        yield connection


def receive(serving: Serving, connection: socket.socket, *, method: str = "POST") -> Reply:
    """Read one response, and have the witness keep it."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        body = response.read()
    except (http.client.BadStatusLine, ConnectionResetError):
        return Reply(None, {}, b"")
    headers = {name.lower(): value for name, value in response.getheaders()}
    serving.witness.bodies += [str(headers).encode(), body]
    return Reply(response.status, headers, body)
