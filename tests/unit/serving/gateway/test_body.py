"""Bodies: whole, bounded in size and time, JSON; what is refused is not read to its end."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.unit.serving.gateway.asgi import (
    CHAT,
    JSON,
    Headers,
    answer,
    called,
    connected,
    everything,
    fine,
    guarded,
    head,
    served,
    wait_for,
)

SMALL = {"body_bytes": 1000}


@pytest.mark.parametrize(
    ("types", "status"),
    [
        ([b"application/json"], 200),
        ([b"Application/JSON; charset=utf-8"], 200),
        ([b'application/json;charset="UTF-8"'], 200),
        ([], 400),
        ([b""], 400),
        # What a page of another site may send without asking.
        ([b"text/plain"], 400),
        ([b"application/x-www-form-urlencoded"], 400),
        ([b"multipart/form-data; boundary=x"], 400),
        ([b"application/json; charset=utf-16"], 400),
        ([b"application/json, text/plain"], 400),
        ([b"application/jsonx"], 400),
        ([b"application/json", b"application/json"], 400),
        ([b"application/json", b"text/plain"], 400),
    ],
)
def test_a_body_says_once_that_it_is_json(types: list[bytes], status: int) -> None:
    reply = called(guarded(fine), headers=[(b"content-type", value) for value in types])
    assert reply.status == status
    if status == 400:
        assert (reply.error["type"], reply.error["code"]) == ("invalid_request_error", "invalid_content_type")


@pytest.mark.parametrize("body", [b"\xff", b"[" * 100, b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": "', b"\0"])
@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_what_no_parser_should_see_is_400(body: bytes, path: str) -> None:
    reply = called(guarded(fine), path=path, body=body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", [[b"{", b'"a"', b": 1}"], [b"", b'{"a": 1}', b""], b'{"a": 1}'])
def test_the_app_gets_a_body_whole(body: bytes | list[bytes]) -> None:
    assert called(guarded(fine), body=body).body == b'{"a": 1}'


def test_no_body_is_no_json_and_no_fault() -> None:
    reply = called(guarded(fine), "GET", "/v1/models", headers=[], body=b"")
    assert (reply.status, reply.body) == (200, b"{}")


def sized(length: object) -> Headers:
    return [JSON, (b"content-length", str(length).encode())]


@pytest.mark.parametrize("length", [1001, 10**18, 10**40])
def test_too_large_a_body_is_not_even_asked_for(length: int) -> None:
    asked = False

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        await guarded(fine, limits=SMALL)(scope, noting, send)

    reply = called(run, headers=sized(length))
    assert (reply.status, reply.error["code"], asked) == (413, "body_too_large", False)
    assert "1,000 bytes" in reply.error["message"]


def test_without_a_length_a_body_is_counted_and_left_at_the_limit() -> None:
    """At most one part more than the limit is taken, of an endless body."""
    taken = 0

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def endless() -> Message:
            nonlocal taken
            taken += 100
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        await guarded(fine, limits=SMALL)(scope, endless, send)

    reply = called(run)
    assert (reply.status, taken) == (413, 1100)


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_the_limit_is_exact(size: int, status: int) -> None:
    body = json.dumps("x" * (size - 2)).encode()
    app = guarded(fine, limits=SMALL)
    assert called(app, body=body).status == status
    assert called(app, headers=sized(len(body)), body=body).status == status
    assert called(app, headers=sized("x"), body=body).status == status


def test_a_client_reads_413_while_it_still_sends() -> None:
    body = b"[" + b" " * 5_000_000 + b"]"
    with served(guarded(fine, limits=SMALL)) as port:
        for content in (body, iter([body[:1_000_000]] * 5)):
            reply = httpx.post(
                f"http://127.0.0.1:{port}{CHAT}", content=content, headers={"content-type": "application/json"}
            )
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "sent",
    [
        lambda port: head(port, length=100),
        lambda port: head(port, length=100) + b'{"a": ',
        lambda port: head(port, chunked=True),
        lambda port: head(port, chunked=True) + b"2\r\n{}\r\n",
    ],
)
def test_half_a_body_is_408_and_the_connection_ends(sent: object) -> None:
    with served(guarded(fine, limits={"body_seconds": 0.3})) as port:
        first = sent(port)  # pyright: ignore[reportCallIssue]
        with connected(port, first) as connection:
            said = everything(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in said.lower()
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"


def test_a_client_that_leaves_within_its_body_frees_its_place() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await answer(send)

    gate = guarded(app, limits={"body_seconds": 60.0, "concurrent": 1})
    with served(gate) as port:
        for _ in range(3):
            with connected(port, head(port, length=100) + b"{") as connection:
                wait_for(lambda: gate.in_flight == 1)
                connection.shutdown(socket.SHUT_RDWR)
            wait_for(lambda: gate.in_flight == 0)
        with connected(port, head(port, length=2) + b"{}") as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert [message["body"] for message in seen] == [b"{}"]


def test_a_garbled_chunk_is_the_servers_to_refuse() -> None:
    with (
        served(guarded(fine, limits=SMALL)) as port,
        connected(port, head(port, chunked=True) + b"zz\r\n{}\r\n") as connection,
    ):
        assert not everything(connection).startswith(b"HTTP/1.1 5")
