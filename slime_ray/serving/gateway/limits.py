"""How many requests run at once, in all and by key, and none that is new while the endpoint drains."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.config.serving import LimitsConfig
from slime_ray.serving.gateway.record import record_of
from slime_ray.serving.gateway.refusal import Refusal

# Anyone may ask for the health. It has places of its own, so neither a full endpoint nor a flood hides the other.
HEALTH_AT_ONCE = 16
RETRY_AFTER_S = 1


class Traffic:
    """The requests that run now.

    Attributes:
        most: at once; of several replicas each has its share, and at least one.
        most_by_key: at once with one key.
        by_key: how many run; None stands for no key.
        draining: whether new ones are refused.
    """

    def __init__(self, limits: LimitsConfig, *, replicas: int) -> None:
        """Nothing runs yet."""
        self.most = max(1, limits.concurrent // replicas)
        self.most_by_key = max(1, limits.concurrent_per_key // replicas)
        self.by_key: Counter[str | None] = Counter()
        self.health = 0
        self.draining = False

    @property
    def running(self) -> int:
        """How many run in all."""
        return self.by_key.total()

    def enter(self, key: str | None) -> None:
        """Take a place.

        Raises:
            Refusal: there is none: 429 where a client has too many, or all have; 503 while it drains.
        """
        again = {"retry-after": str(RETRY_AFTER_S)}
        if self.draining:
            raise Refusal(503, "this server takes no new requests; try again", code="draining", headers=again)
        if key is not None and self.by_key[key] >= self.most_by_key:
            message = f"this key has {self.most_by_key} requests running, the most that it may; try again"
            raise Refusal(429, message, code="rate_limit_exceeded", headers=again)
        if self.running >= self.most:
            message = f"{self.most} requests are running, the most that are taken at once; try again"
            raise Refusal(429, message, code="server_busy", headers=again)
        self.by_key[key] += 1


class Limiting:
    """Gives a request its place, and frees it whatever comes of the request.

    Args:
        app: where a request goes on.
        health: what answers for the health, beside the limits and without a body.
        traffic: the places.
    """

    def __init__(self, app: ASGIApp, *, health: ASGIApp, traffic: Traffic) -> None:
        self.app = app
        self.health = health
        self.traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        record = record_of(scope)
        if record.for_health:
            await self._pass_for_health(scope, receive, send)
            return
        self.traffic.enter(record.key)
        try:
            await self.app(scope, receive, send)
        finally:
            self.traffic.by_key[record.key] -= 1

    async def _pass_for_health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.traffic.health >= HEALTH_AT_ONCE:
            again = {"retry-after": str(RETRY_AFTER_S)}
            raise Refusal(429, "too many ask for the health at once", code="server_busy", headers=again)
        self.traffic.health += 1
        try:
            await self.health(scope, _Bodiless(receive), send)
        finally:
            self.traffic.health -= 1


class _Bodiless:
    """A `receive` that begins with an empty body: a stranger's is not waited for."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._begun = False

    async def __call__(self) -> Message:
        if self._begun:
            return await self._receive()
        self._begun = True
        return {"type": "http.request", "body": b"", "more_body": False}
