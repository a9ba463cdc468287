"""Clients of an endpoint: what became of each of their requests, and what the endpoint tells of itself."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

_PATIENCE_S = 90.0  # beyond every bound of the endpoint's own
_PROMPT = "seven red windows"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        kind: ok: a whole answer; refused: an error in OpenAI's form, within a stream as an event; foreign: an error in
            another form; broken: the connection ended, or the answer is not whole.
        status: of HTTP; None where no response began.
        code: of an error in OpenAI's form.
        text: the answer, or what came instead.
        retry_after: the header.
        began, ended: by the monotonic clock.
    """

    kind: Literal["ok", "refused", "foreign", "broken"]
    model: str
    stream: bool
    status: int | None
    code: str | None
    text: str
    retry_after: str | None
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def sort(self) -> tuple[str, int | None, str | None]:
        """What it is counted under."""
        return self.kind, self.status, self.code


@dataclass
class _Answer:
    """A response as it comes in."""

    text: str = ""
    finish: str | None = None
    tokens: int = 0
    done: bool = False
    code: str | None = None

    def take(self, event: str) -> None:
        """Read one event of a stream."""
        if event == "[DONE]":
            self.done = True
            return
        found = json.loads(event)
        if "error" in found:
            self.code = found["error"]["code"]
            return
        for choice in found["choices"]:
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish
        self.tokens = (found.get("usage") or {}).get("completion_tokens", self.tokens)


async def ask(client: aiohttp.ClientSession, model: str, *, stream: bool, tokens: int) -> Outcome:
    """Ask for exactly so many tokens, greedily; never raises for what the endpoint does."""
    began, status, retry_after, answer = time.monotonic(), None, None, _Answer()
    body = completion(model, stream=stream, tokens=tokens)

    def outcome(kind: Literal["ok", "refused", "foreign", "broken"], text: str) -> Outcome:
        return Outcome(kind, model, stream, status, answer.code, text, retry_after, began, time.monotonic())

    try:
        async with client.post("completions", json=body) as response:
            status, retry_after = response.status, response.headers.get("retry-after")
            if status != 200:
                text = await response.text(errors="replace")
                answer.code = _code(text)
                return outcome("foreign" if answer.code is None else "refused", text)
            if stream:
                async for line in response.content:
                    if line.strip():
                        answer.take(line.decode().strip().removeprefix("data: "))
            else:
                answer.take(await response.text())
                answer.done = True
    except (aiohttp.ClientError, TimeoutError) as error:
        return outcome("broken", f"{type(error).__name__}: {error}")
    if answer.code is not None:
        return outcome("refused", answer.text)
    whole = answer.done and answer.finish == "length" and answer.tokens == tokens
    return outcome("ok" if whole else "broken", answer.text)


def completion(model: str, *, stream: bool, tokens: int) -> dict[str, Any]:
    """A request's body."""
    body = {"model": model, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def _code(text: str) -> str | None:
    """The code of an error in OpenAI's form; None for any other text."""
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


def client_of(base_url: str) -> aiohttp.ClientSession:
    """A client that opens as many connections as it is asked for; httpx takes seconds to find one among hundreds."""
    patience = aiohttp.ClientTimeout(total=_PATIENCE_S)
    return aiohttp.ClientSession(f"{base_url}/", timeout=patience, connector=aiohttp.TCPConnector(limit=0))


def burst(base_url: str, model: str, *, clients: int, each: int, tokens: int) -> list[Outcome]:
    """So many clients at once, each with so many requests; every second one streams. Whoever is refused waits a bit."""

    async def one(client: aiohttp.ClientSession, number: int) -> list[Outcome]:
        found = []
        for _ in range(each):
            found.append(await ask(client, model, stream=bool(number % 2), tokens=tokens))
            await asyncio.sleep(0.5 * (found[-1].kind != "ok"))
        return found

    async def all_of_them() -> list[Outcome]:
        async with client_of(base_url) as client:
            return [out for found in await asyncio.gather(*(one(client, n) for n in range(clients))) for out in found]

    return asyncio.run(all_of_them())


@dataclass
class Load:
    """Inside, clients ask without a pause to speak of: of each model one that streams and one that does not.

    Attributes:
        outcomes: so far; whole after the end.
    """

    base_url: str
    models: Sequence[str]
    tokens: int = 24
    pause_s: float = 0.5
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    async def _run(self) -> None:
        async with client_of(self.base_url) as client:
            await asyncio.gather(*(self._one(client, model, bool(way)) for model in self.models for way in (0, 1)))

    async def _one(self, client: aiohttp.ClientSession, model: str, stream: bool) -> None:
        while not self._ended.is_set():
            self.outcomes.append(await ask(client, model, stream=stream, tokens=self.tokens))
            await asyncio.sleep(self.pause_s)

    def counts(self) -> Counter[tuple[str, int | None, str | None]]:
        """How many of each kind, status and code."""
        return count(self.outcomes)


def count(outcomes: Sequence[Outcome]) -> Counter[tuple[str, int | None, str | None]]:
    """How many of each kind, status and code."""
    return Counter(outcome.sort for outcome in outcomes)


def connection(base_url: str, body: dict[str, Any], *, cut: int = 0, window: int | None = None) -> socket.socket:
    """A connection on which a request was sent.

    Args:
        base_url: of the endpoint.
        body: of the request.
        cut: so many last bytes of the body are not sent.
        window: bytes that are taken in without being asked for.
    """
    place = urlsplit(base_url)
    found = socket.socket()
    if window is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    found.settimeout(_PATIENCE_S)
    found.connect((place.hostname, place.port))
    content = json.dumps(body).encode()
    lines = ["POST /v1/completions HTTP/1.1", f"Host: {place.netloc}", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
    found.sendall("\r\n".join(lines).encode() + content[: len(content) - cut])
    return found


def stream(base_url: str, model: str, *, tokens: int) -> socket.socket:
    """A connection on which an answer has begun to come."""
    found = connection(base_url, completion(model, stream=True, tokens=tokens))
    assert found.recv(4096).startswith(b"HTTP/1.1 200 ")
    return found


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


@dataclass(frozen=True)
class Endpoint:
    """What can be seen of an endpoint.

    Attributes:
        base_url: where it answers.
        models: that it serves.
        log: its request log.
        shown: where Ray shows the node's metrics, vLLM's among them.
    """

    base_url: str
    models: tuple[str, ...]
    log: Path
    shown: str

    def get(self, route: str) -> httpx.Response:
        """Get what is not below /v1."""
        return httpx.get(f"{self.base_url.removesuffix('/v1')}{route}", timeout=30)

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        return metric_in(self.get("/metrics").text, name)

    def in_flight(self) -> float:
        """How many requests have a place."""
        return self.metric("slime_ray_requests_in_flight")

    def in_engine(self, model: str) -> float:
        """How many requests vLLM itself works on."""
        return metric_in(httpx.get(self.shown, timeout=30).text, "ray_vllm_num_requests_running", model_name=model)

    def logged(self) -> list[dict[str, Any]]:
        """The request log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def answers(self) -> dict[str, str]:
        """What each model answers now."""
        found = {}
        for model in self.models:
            body = completion(model, stream=False, tokens=24)
            answer = httpx.post(f"{self.base_url}/completions", json=body, timeout=120).json()
            found[model] = answer["choices"][0]["text"]
        return found


def metric_in(page: str, name: str, **labels: str) -> float:
    """The sum of a metric's values, of those with some labels."""
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
