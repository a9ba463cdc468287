"""What one key, all together and one body may take, and that a place is free again whatever came of a request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest

from tests.served import LIMITS, MODEL, Serving
from tests.serving import wire
from tests.serving.wire import CHAT

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "red"}], "max_tokens": 1}


@contextmanager
def held(serving: Serving, key: str, count: int) -> Iterator[list[Any]]:
    """Inside, requests whose bodies do not end hold so many places."""
    raw = wire.json_request(serving, b'{"model": ', ("content-length", "99"), key=key, sized=False)
    with ExitStack() as stack:
        yield [stack.enter_context(wire.connected(serving, raw)) for _ in range(count)]


def refusal(response: httpx2.Response) -> tuple[int, str, str]:
    """Status, code and type."""
    error = response.json()["error"]
    return response.status_code, error["code"], error["type"]


def test_a_key_has_its_places_and_all_together_theirs(serving: Serving) -> None:
    by_key, in_all = LIMITS["concurrent_per_key"], LIMITS["concurrent"]
    with serving.client("holder") as holder, serving.client() as other:
        with held(serving, "holder", by_key):
            serving.wait_in_flight(by_key)
            refused = holder.post(CHAT, json=BODY)
            assert refusal(refused) == (429, "rate_limit_exceeded", "rate_limit_error")
            assert refused.headers["retry-after"] == "1"
            assert str(by_key) in refused.json()["error"]["message"]
            assert other.post(CHAT, json=BODY).status_code == 200
            with held(serving, "crowd", in_all - by_key):
                serving.wait_in_flight(in_all)
                for _ in range(3):
                    refused = other.post(CHAT, json=BODY)
                    assert refusal(refused) == (429, "server_busy", "rate_limit_error")
                    assert refused.headers["retry-after"] == "1"
                assert other.get("/v1/models").status_code == 429
                assert other.get("/health").status_code == 200
                assert other.get("/metrics").status_code == 200
        serving.wait_in_flight(0)
        assert holder.post(CHAT, json=BODY).status_code == 200


def test_a_body_that_does_not_arrive_is_not_waited_for(serving: Serving) -> None:
    began = time.monotonic()
    with held(serving, "holder", 1) as (connection,):
        reply = wire.receive(serving, connection)
    assert reply.status == 408
    assert time.monotonic() - began >= LIMITS["body_seconds"]
    assert (reply.error["code"], reply.error["type"]) == ("body_timeout", "timeout_error")
    assert "4 s" in reply.error["message"]
    serving.wait_in_flight(0)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_has_its_size(serving: Serving, *, chunked: bool) -> None:
    most = LIMITS["body_bytes"]
    bare = len(json.dumps({**BODY, "user": ""}))
    with serving.client() as client:
        for size, status in ((most, 200), (most + 1, 413)):
            body = json.dumps({**BODY, "user": "x" * (size - bare)}).encode()
            assert len(body) == size
            content = (body[at : at + 5000] for at in range(0, size, 5000)) if chunked else body
            response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert response.status_code == status, response.text
        assert response.json()["error"]["code"] == "body_too_large"
        assert f"{most:,}" in response.json()["error"]["message"]


def test_a_length_is_believed_before_a_byte_has_come(serving: Serving) -> None:
    raw = wire.json_request(serving, b"", ("content-length", str(10**15)), sized=False)
    assert wire.send(serving, raw).status == 413
    serving.wait_in_flight(0)


def test_clients_that_go_away_free_their_places(serving: Serving) -> None:
    """In the middle of a body, before an answer, and in the middle of a stream."""
    long = {**BODY, "max_tokens": LIMITS["max_tokens"], "n": 4, "ignore_eos": True}
    whole = json.dumps(long).encode()
    # More than the sockets hold: else it might be through before its client leaves.
    stream = json.dumps({**long, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    before = len(serving.logged())
    with held(serving, "holder", 1):
        serving.wait_in_flight(1)
    serving.wait_in_flight(0)
    with wire.connected(serving, wire.json_request(serving, whole, key="holder")):
        serving.wait_in_flight(1)
    serving.wait_in_flight(0)
    with wire.connected(serving, wire.json_request(serving, stream, key="holder")) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    serving.wait_in_flight(0)
    lines = serving.lines_with("key", "holder", count=3, after=before)
    assert [line["outcome"] for line in lines] == ["gone"] * 3, lines


def test_who_reads_late_gets_the_whole_answer(serving: Serving) -> None:
    """More than the sockets hold; that nobody reads for `request_seconds` ends it is tested without an engine."""
    settings = {"max_tokens": LIMITS["max_tokens"], "n": 4, "ignore_eos": True, "stream": True}
    body = json.dumps({**BODY, **settings, "logprobs": True, "top_logprobs": 20}).encode()
    with wire.connected(serving, wire.json_request(serving, body, key="holder")) as connection:
        serving.wait_in_flight(1)
        time.sleep(2)
        reply = wire.receive(serving, connection)
    assert len(reply.body) > 500_000
    assert reply.body.endswith(b"data: [DONE]\n\n")
    serving.wait_in_flight(0)
