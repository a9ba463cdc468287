"""Places: in all, by key, a replica's share; the health has its own; draining takes no new requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from slime_ray.config.serving import KeysConfig
from slime_ray.serving.gateway.keys import Keys, add_key
from slime_ray.serving.gateway.limits import HEALTH_AT_ONCE
from slime_ray.serving.gateway.stack import Gateway
from tests.unit.serving.gateway.asgi import JSON, Headers, Reply, answer, call, connected, guarded, served, wait_for


class Slow:
    """An app whose requests wait until they are let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.most = self.running = self.seen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self.let_go.wait()
        self.running -= 1
        await answer(send)


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that never answers."""
    await asyncio.sleep(60)


Part = Callable[[Gateway, Slow], Awaitable[None]]


def run(part: Part, *, keys: Keys | None = None, **sections: Any) -> None:
    async def inside() -> None:
        slow = Slow()
        await part(guarded(slow, keys=keys, **sections), slow)

    asyncio.run(inside())


async def started(gate: Gateway, count: int, headers: Headers = (JSON,), **more: Any) -> list[asyncio.Task[Reply]]:
    """Some requests that have come as far as they come."""
    tasks = [asyncio.create_task(call(gate, headers=headers, **more)) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def statuses(replies: list[Reply]) -> dict[int | None, int]:
    found = [reply.status for reply in replies]
    return {status: found.count(status) for status in found}


@pytest.mark.parametrize(("limit", "replicas", "share"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 5, 1)])
def test_no_more_run_at_once_than_the_share(limit: int, replicas: int, share: int) -> None:
    async def part(gate: Gateway, slow: Slow) -> None:
        tasks = await started(gate, 50)
        assert (slow.running, gate.in_flight) == (share, share)
        slow.let_go.set()
        replies = await asyncio.gather(*tasks)
        assert statuses(replies) == {200: share, 429: 50 - share}
        refused = next(reply for reply in replies if reply.status == 429)
        assert (refused.error["type"], refused.error["code"]) == ("rate_limit_error", "server_busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert (slow.most, gate.in_flight) == (share, 0)
        assert (await call(gate)).status == 200

    run(part, limits={"concurrent": limit}, ingress_replicas=replicas)


def test_one_key_leaves_room_for_another(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    alice, bob = ([JSON, (b"authorization", f"Bearer {add_key(file, name)}".encode())] for name in ("alice", "bob"))
    keys = Keys.load(KeysConfig(file=str(file)))

    async def part(gate: Gateway, slow: Slow) -> None:
        first = await started(gate, 5, alice)
        assert gate.in_flight == 2
        second = await started(gate, 5, bob)
        assert gate.in_flight == 3
        slow.let_go.set()
        a, b = await asyncio.gather(*first), await asyncio.gather(*second)
        assert (statuses(a), statuses(b)) == ({200: 2, 429: 3}, {200: 1, 429: 4})
        assert {reply.error["code"] for reply in a if reply.status == 429} == {"rate_limit_exceeded"}
        assert {reply.error["code"] for reply in b if reply.status == 429} == {"server_busy"}
        assert gate.in_flight == 0

    run(part, keys=keys, limits={"concurrent": 3, "concurrent_per_key": 2})


def test_without_keys_all_share_the_whole() -> None:
    async def part(gate: Gateway, slow: Slow) -> None:
        tasks = await started(gate, 6)
        slow.let_go.set()
        assert statuses(await asyncio.gather(*tasks)) == {200: 4, 429: 2}

    run(part, limits={"concurrent": 4, "concurrent_per_key": 1})


def test_health_and_metrics_need_no_place_and_health_has_its_own() -> None:
    async def part(gate: Gateway, slow: Slow) -> None:
        tasks = await started(gate, 1)
        page = await call(gate, "GET", "/metrics", headers=[], body=b"")
        assert page.status == 200
        assert 'slime_ray_requests_in_flight{key="-"} 1.0' in page.body.decode()
        asking = await started(gate, HEALTH_AT_ONCE + 3, method="GET", path="/health")
        assert slow.running == 1 + HEALTH_AT_ONCE
        assert gate.in_flight == 1
        slow.let_go.set()
        assert statuses(await asyncio.gather(*asking)) == {200: HEALTH_AT_ONCE, 429: 3}
        assert statuses(await asyncio.gather(*tasks)) == {200: 1}
        assert (await call(gate, "GET", "/health")).status == 200

    run(part, limits={"concurrent": 1})


def test_the_health_waits_for_no_ones_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(0.1)  # what comes of the body meanwhile is no departure
        await answer(send)

    gate = guarded(app, limits={"body_seconds": 60.0})
    request = f"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: {10**12}\r\n\r\nhalf".encode()
    with served(gate) as port, connected(port, request) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_asks_for_a_health_that_hangs_and_leaves_holds_no_place() -> None:
    gate = guarded(hang)
    with served(gate) as port:
        for _ in range(2):
            with ExitStack() as stack:
                for _ in range(HEALTH_AT_ONCE):
                    stack.enter_context(connected(port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"))
                wait_for(lambda: gate.traffic.health == HEALTH_AT_ONCE)
            wait_for(lambda: gate.traffic.health == 0)


def test_draining_ends_what_runs_and_takes_nothing_new() -> None:
    async def part(gate: Gateway, slow: Slow) -> None:
        running = await started(gate, 3)
        gate.drain()
        late = await call(gate)
        assert (late.status, late.error["code"], late.headers["retry-after"]) == (503, "draining", "1")
        assert gate.in_flight == 3
        slow.let_go.set()
        assert statuses(await asyncio.gather(*running)) == {200: 3}
        assert gate.in_flight == 0
        assert (await call(gate, "GET", "/health")).status == 200
        assert "slime_ray_draining 1.0" in (await call(gate, "GET", "/metrics", body=b"")).body.decode()
        assert slow.seen == 4  # three, and the health

    run(part)


def test_a_fault_frees_its_place() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("/etc/passwd")

    async def part() -> None:
        gate = guarded(app, limits={"concurrent": 1})
        for path in ("/v1/models", "/health"):
            for _ in range(HEALTH_AT_ONCE + 1):
                assert (await call(gate, "GET", path, body=b"")).status == 500
        assert gate.in_flight == 0

    asyncio.run(part())


def test_a_cancelled_request_frees_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """As Ray Serve ends a request whose client went away."""

    async def part(gate: Gateway, slow: Slow) -> None:
        tasks = await started(gate, 3)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ended] == [asyncio.CancelledError] * 3
        assert gate.in_flight == 0

    run(part)
    assert [json.loads(line)["outcome"] for line in capsys.readouterr().out.splitlines()] == ["gone"] * 3
