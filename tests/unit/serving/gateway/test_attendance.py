"""What runs for nobody is stopped, what stands still ends, and what goes on is let be. Over a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable

import openai
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from slime_ray.serving.gateway.record import record_of
from tests.unit.serving.gateway.asgi import (
    CHAT,
    answer,
    begin_events,
    called,
    connected,
    everything,
    guarded,
    head,
    served,
    wait_for,
)

PATIENT = {"concurrent": 1, "request_seconds": 60.0}
HASTY = {"concurrent": 1, "request_seconds": 0.5}


class Watched:
    """An app that begins in one of some ways, waits, and notes how it ended."""

    def __init__(self, *begin: str) -> None:
        self.begin = begin
        self.began = threading.Event()
        self.ends: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if "read" in self.begin:
                await receive()
            if "stream" in self.begin:
                await begin_events(send)
            self.began.set()
            if "read on" in self.begin:
                await receive()
                assert (await receive())["type"] == "http.disconnect"
                self.ends.append("saw it")
            await asyncio.sleep(60)
            self.ends.append("slept")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            if "raise" in self.begin:
                raise ValueError("what a library makes of it") from None
            if "swallow" in self.begin:
                await answer(send)
                return
            raise


LEAVE: list[Callable[[socket.socket], None]] = [
    lambda connection: connection.shutdown(socket.SHUT_RDWR),
    # A reset, as when a client is killed.
    lambda connection: connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
]


@pytest.mark.parametrize("leave", LEAVE, ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("begin", "ends"),
    [
        ((), ["cancelled"]),
        (("read",), ["cancelled"]),
        (("read", "stream"), ["cancelled"]),
        (("stream",), ["cancelled"]),
        (("read", "raise"), ["cancelled"]),
        (("read", "stream", "swallow"), ["cancelled"]),
        (("read on",), ["saw it", "cancelled"]),
    ],
    ids=" ".join,
)
def test_who_goes_away_frees_the_place(
    begin: tuple[str, ...], ends: list[str], leave: Callable[[socket.socket], None], capsys: pytest.CaptureFixture[str]
) -> None:
    app = Watched(*begin)
    gate = guarded(app, limits=PATIENT)
    with served(gate) as port:
        with connected(port, head(port, length=2) + b"{}") as connection:
            assert app.began.wait(10)
            assert gate.in_flight == 1
            leave(connection)
        wait_for(lambda: gate.in_flight == 0)
    assert app.ends == ends
    logged = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (logged["outcome"], logged["code"]) == ("gone", None)


def test_a_pipelined_request_is_no_departure() -> None:
    """More bytes on the connection are the next request, not the end of this one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        await answer(send)

    with served(guarded(app, limits=PATIENT)) as port:
        request = head(port, length=2) + b"{}"
        with connected(port, request + request) as connection:
            said = b""
            while said.count(b"HTTP/1.1 200 OK") < 2:
                said += connection.recv(65536)


def test_what_follows_an_answer_runs_to_its_end() -> None:
    """A server says "disconnect" after the last byte as well."""
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await asyncio.sleep(0.9)
        ended.set()

    gate = guarded(app, limits=HASTY)
    with served(gate) as port, connected(port, head(port, length=2) + b"{}") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert ended.wait(10)


def test_no_answer_in_time_is_504_that_is_not_sent_again() -> None:
    app = Watched("read")
    with served(guarded(app, limits=HASTY)) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=2)
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="m", messages=[])
        client.close()
    assert raised.value.status_code == 504
    assert raised.value.code == "request_timeout"
    assert app.ends == ["cancelled"]


@pytest.mark.parametrize("begin", [("stream",), ("stream", "raise"), ("stream", "swallow")], ids=" ".join)
def test_a_stream_that_stands_still_ends_with_an_error(
    begin: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with served(guarded(Watched(*begin), limits=HASTY)) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x")
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError, match=r"nothing came from the model for 0\.5 s") as raised:
            list(stream)
        client.close()
    assert raised.value.code == "request_timeout"
    logged = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (logged["status"], logged["outcome"], logged["code"]) == (200, "failed", "request_timeout")


def test_a_stream_that_moves_may_take_longer_than_the_limit() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin_events(send)
        for _ in range(6):
            await asyncio.sleep(0.25)
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    reply = called(guarded(app, limits={"request_seconds": 1.0}))
    assert reply.complete
    assert reply.body.endswith(b"data: {}\n\ndata: [DONE]\n\n")


def test_who_reads_nothing_loses_the_connection(capsys: pytest.CaptureFixture[str]) -> None:
    """What is sent to it waits in the server, in a bounded amount, and not for ever."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await begin_events(send)
        while True:
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            sent += 10_000

    gate = guarded(app, limits=HASTY)
    with (
        served(gate) as port,
        connected(port, head(port, length=2) + b"{}", receive_buffer=4096) as connection,
    ):
        wait_for(lambda: sent > 0)
        wait_for(lambda: gate.in_flight == 0)
        # What the server and both kernels hold, and no more.
        assert sent < 20_000_000
        assert not everything(connection).endswith(b"0\r\n\r\n")
    logged = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert logged["outcome"] == "gone"


def test_an_apps_own_time_out_is_a_fault_of_ours() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(1)

    reply = called(guarded(app, limits=PATIENT))
    assert (reply.status, reply.error["code"]) == (500, "internal_error")


def test_a_generator_of_fastapi_is_closed_when_its_client_goes() -> None:
    app = FastAPI()
    began, closed = threading.Event(), threading.Event()

    async def events() -> AsyncIterator[str]:
        try:
            yield "data: {}\n\n"
            began.set()
            await asyncio.sleep(60)
        finally:
            closed.set()

    @app.post(CHAT)
    async def chat() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    gate = guarded(app, limits=PATIENT)
    with served(gate) as port:
        with connected(port, head(port, length=2) + b"{}"):
            assert began.wait(10)
        assert closed.wait(10)
        wait_for(lambda: gate.in_flight == 0)


def test_the_record_lies_in_the_scope() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        assert (record.route, record.method, record.key) == (CHAT, "POST", None)
        await answer(send)

    assert called(guarded(app)).status == 200
