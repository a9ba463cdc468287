"""Every error is in OpenAI's form, and says nothing of what is behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import httpx
import openai
import pytest
from fastapi import FastAPI, HTTPException
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from starlette.types import Message, Receive, Scope, Send

from slime_ray.serving.gateway.app_errors import exception_handlers, scrubbed
from slime_ray.serving.gateway.refusal import Refusal, error_type
from tests.unit.serving.gateway.asgi import (
    CHAT,
    begin_events,
    called,
    connected,
    everything,
    guarded,
    head,
    served,
)

SECRET = "/srv/models/secret.py broke at 0x7f00deadbeef on 10.0.0.7:6379"


class Body(BaseModel):
    model: str
    temperature: float = Field(default=1.0, le=2.0)


def app_that_fails() -> FastAPI:
    """One route for each way to fail."""
    app = FastAPI(exception_handlers=exception_handlers())

    @app.post(CHAT)
    async def chat(body: Body) -> dict[str, str]:
        match body.model:
            case "fault":
                raise ValueError(SECRET)
            case "refused":
                raise Refusal(404, "there is no model 'refused'", code="model_not_found", param="model")
            case "http":
                raise HTTPException(400, detail=f"ValueError: {SECRET}")
            case "http 500":
                raise HTTPException(500, detail=SECRET)
            case "busy":
                raise HTTPException(503, detail="no room", headers={"Retry-After": "7", "X-Secret": SECRET})
        return {"model": body.model}

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with served(guarded(app_that_fails())) as port:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)


@pytest.mark.parametrize(
    ("model", "extra", "error", "status", "code", "param"),
    [
        ("fault", {}, openai.InternalServerError, 500, "internal_error", None),
        ("refused", {}, openai.NotFoundError, 404, "model_not_found", "model"),
        ("http", {}, openai.BadRequestError, 400, "invalid_request", None),
        ("http 500", {}, openai.InternalServerError, 500, "internal_error", None),
        ("busy", {}, openai.InternalServerError, 503, "unavailable", None),
        ("m", {"temperature": 3.0}, openai.BadRequestError, 400, "invalid_request", "temperature"),
        ("m", {"temperature": "/etc/passwd"}, openai.BadRequestError, 400, "invalid_request", "temperature"),
        (7, {}, openai.BadRequestError, 400, "invalid_request", "model"),
    ],
)
def test_each_failure_is_its_exception_of_the_client(
    client: openai.OpenAI,
    model: str,
    extra: dict[str, object],
    error: type[openai.APIStatusError],
    status: int,
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=model, messages=[], extra_body=extra)
    found = raised.value
    assert (found.status_code, found.code, found.param, found.type) == (status, code, param, error_type(status))
    assert found.response.headers["x-request-id"]
    shown = found.response.text + str(found.response.headers)
    for secret in ("/srv", "secret.py", "0x7f", "10.0.0.7", "ValueError", "Traceback", "passwd", "X-Secret"):
        assert secret not in shown
    if status == 500:
        assert found.response.headers["x-request-id"] in found.message
    if model == "busy":
        assert found.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/../etc/passwd", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"),
    ],
)
def test_routes_that_are_none(client: openai.OpenAI, method: str, path: str, status: int, code: str) -> None:
    reply = httpx.request(method, str(client.base_url).removesuffix("/v1/") + path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.headers.get("allow") == ("POST" if status == 405 else None)
    assert "passwd" not in reply.text


@pytest.mark.parametrize("body", [b"[1]", b"1", b'"x"', b"{}", b"{", b"{,}", b"null"])
def test_what_is_no_request_is_400(client: openai.OpenAI, body: bytes) -> None:
    url = f"{client.base_url}chat/completions"
    reply = httpx.post(url, content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("within", [True, False], ids=["as its middleware", "around it"])
def test_a_fault_is_logged_here_and_nowhere_else(within: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = app_that_fails()
    gate = guarded(app)
    if within:
        app.add_middleware(lambda inner: guarded(inner))
    with caplog.at_level(logging.ERROR, logger="slime_ray.serving"):
        reply = called(app if within else gate, body=b'{"model": "fault"}')
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    record = next(record for record in caplog.records if record.name == "slime_ray.serving")
    assert reply.headers["x-request-id"] in record.getMessage()
    assert SECRET in caplog.text


@pytest.mark.parametrize(
    "raised", [Refusal(429, "too many", code="server_busy"), ValueError(SECRET)], ids=["refusal", "fault"]
)
def test_a_stream_that_fails_ends_with_an_event(raised: Exception) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin_events(send)
        raise raised

    reply = called(guarded(app))
    assert (reply.status, reply.complete) == (200, True)
    first, last, rest = reply.body.split(b"\n\n")
    assert (first, rest) == (b"data: {}", b"")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == ("server_busy" if isinstance(raised, Refusal) else "internal_error")
    assert b"srv" not in reply.body


def test_half_a_json_answer_is_never_ended_as_if_it_were_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"a": ', "more_body": True})
        raise ValueError(SECRET)

    with served(guarded(app)) as port, connected(port, head(port, length=2) + b"{}") as connection:
        said = everything(connection)
    assert said.endswith(b'{"a": \r\n')
    assert b"srv" not in said


def test_what_fails_after_a_whole_answer_changes_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin_events(send)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        raise ValueError(SECRET)

    reply = called(guarded(app))
    assert (reply.status, reply.body, reply.complete) == (200, b"data: {}\n\ndata: [DONE]\n\n", True)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "This model's maximum context length is 256 tokens. However, you requested 300 output tokens and your "
            "prompt contains at least 12 input tokens, for a total of at least 312 tokens. Please reduce the length of "
            "the input prompt or the number of requested output tokens.",
            None,
        ),
        ("ValueError: top_k must be -1 or at least 1, got 0.", "top_k must be -1 or at least 1, got 0."),
        ("ray.exceptions.RayTaskError(ValueError): vllm.Error: too long", "too long"),
        ("cannot open /srv/runs/a b/model.py", "cannot open [...] [...]"),
        ("cannot open '/srv/runs/a b/model.py' here", "cannot open [...] here"),
        ("see C:\\Users\\me\\x.py", "see [...]"),
        ("error in vllm/v1/engine/core.py:123 today", "error in [...] today"),
        ("error in core.py:123", "error in [...]"),
        ("<vllm.Engine object at 0x7f3a> is dead", "[...] is dead"),
        ("node 10.0.0.7:6379 and fe80::1ff:fe23:4567:890a died", "node [...] and [...] died"),
        ("worker gpu-3.internal:8265 died", "worker [...] died"),
        ("actor 4f6e1c0a9b8d7e6f5a4b3c2d01000000 died", "actor [...] died"),
        ("ask http://10.0.0.7/x?y for it", "ask [...] for it"),
        ("torch.cuda.OutOfMemoryError: tried to allocate 2 GiB", "tried to allocate 2 GiB"),
        ("bad thing in vllm.v1.engine.core now", "bad thing in [...] now"),
        ('\n\nfirst line\nTraceback (most recent call last):\n  File "/x.py"', "first line"),
        ("", "the request cannot be served"),
        ("ValueError: ", "the request cannot be served"),
        ("n must be at most 8, and input/output is text", None),
        ("there is no model 'Qwen/Qwen2.5-0.5B'", None),
        ("tab\tand\x00zero\x1b[31m", "tab and zero [31m"),
    ],
)
def test_what_remains_of_an_engines_message(message: str, shown: str | None) -> None:
    assert scrubbed(message) == (message if shown is None else shown)


PIECES = [
    "/",
    "a",
    ".",
    ":",
    "'",
    '"',
    " ",
    "\\",
    "0x",
    "10.",
    "::",
    "vllm",
    "Error",
    "(",
    "<",
    "at 0x1",
    "ab",
    "\n",
    "~",
]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=400).map("".join))
@example("a" * 10_000)
@example("a." * 5000)
@example("a/" * 5000)
@example("ab:" * 5000)
@example("vllm.a" * 2000)
@example("<" * 10_000)
@example("'/" * 5000)
@example("Error(" * 3000)
def test_a_message_is_one_short_line(message: str) -> None:
    shown = scrubbed(message)
    assert shown
    assert len(shown) <= 400
    assert shown.isprintable()


@given(
    st.lists(st.text("abz09_-", min_size=1, max_size=8), min_size=1, max_size=5), st.sampled_from(["", "see ", "('"])
)
def test_no_absolute_path_remains(parts: list[str], before: str) -> None:
    assert "/".join(["", *parts]) not in scrubbed(f"{before}/{'/'.join(parts)} is not there")


@pytest.mark.parametrize("proxied", [False, True])
def test_a_client_that_left_is_no_fault(caplog: pytest.LogCaptureFixture, *, proxied: bool) -> None:
    """Ray's proxy raises where other servers say so."""

    async def part() -> None:
        sent: list[Message] = []

        async def receive() -> Message:
            if proxied:
                raise RuntimeError("cancelled")
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "client": ("::1", 1)}
        await guarded(app_that_fails(), proxied=proxied)(scope, receive, send)
        assert not sent

    asyncio.run(part())
    assert not caplog.records
