"""What the gateway's tests share: a small app, a call without a network, a real server, and sockets to abuse it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.config.serving import KeysConfig, ServingRecipe
from slime_ray.serving.gateway.keys import Keys
from slime_ray.serving.gateway.stack import Gateway, gateway

CHAT = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")
Headers = Sequence[tuple[bytes, bytes]]


@dataclass
class Reply:
    """A response as an ASGI server sees it."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def error(self) -> dict[str, Any]:
        """What stands under "error", after a look that it is of OpenAI's form."""
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


def recipe(**sections: Any) -> ServingRecipe:
    """A recipe with one model called m, of which some sections are given."""
    return ServingRecipe.model_validate({"models": {"m": {"source": "x"}}, **sections})


def guarded(app: ASGIApp, *, keys: Keys | None = None, proxied: bool = False, **sections: Any) -> Gateway:
    """An app behind a gateway, without keys unless some are given."""
    none = Keys.load(KeysConfig(env="SLIME_RAY_TEST_NO_KEYS"))
    return gateway(app, recipe=recipe(**sections), keys=keys or none, proxied=proxied)


async def call(
    app: ASGIApp,
    method: str = "POST",
    path: str = CHAT,
    *,
    headers: Headers = (JSON,),
    body: bytes | Sequence[bytes] = b"{}",
    client: tuple[str, int] | None = ("127.0.0.1", 1),
    type_: str = "http",
    root_path: str = "",
) -> Reply:
    """Call an app as a server would; the client stays until the answer's end."""
    parts = [body] if isinstance(body, bytes) else list(body)
    given: list[Message] = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]
    reply = Reply()

    async def receive() -> Message:
        return given.pop(0) if given else await asyncio.Future()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert reply.status is None
            reply.status = message["status"]
            names = [name.decode("latin-1") for name, _ in message["headers"]]
            assert len(set(names)) == len(names), f"a header is there twice: {names}"
            reply.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            assert not reply.complete
            reply.body += message.get("body", b"")
            reply.complete = not message.get("more_body", False)
        else:
            reply.headers["closed"] = message["type"]

    scope: Scope = {
        "type": type_,
        "method": method,
        "path": path,
        "root_path": root_path,
        "query_string": b"",
        "headers": list(headers),
        "client": client,
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return reply


def called(app: ASGIApp, *arguments: Any, **more: Any) -> Reply:
    """`call` in a loop of its own."""
    return asyncio.run(call(app, *arguments, **more))


async def answer(send: Send, body: bytes = b"{}", status: int = 200) -> None:
    """A whole JSON response."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def begin_events(send: Send) -> None:
    """The start of a stream of events and a first event."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers with it."""
    if scope["type"] == "http":
        await answer(send, (await receive())["body"] or b"{}")


@contextmanager
def served(app: ASGIApp) -> Iterator[int]:
    """The port of a real server; it ends with the context."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()


def wait_for(reached: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def head(port: int, *, path: str = CHAT, length: int | None = None, chunked: bool = False) -> bytes:
    """The lines before a request's body."""
    size = "transfer-encoding: chunked\r\n" if chunked else f"content-length: {length or 0}\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n{size}\r\n".encode()


@contextmanager
def connected(port: int, first: bytes, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection on which something was sent."""
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        connection.sendall(first)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
