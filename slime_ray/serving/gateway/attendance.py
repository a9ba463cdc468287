"""Is the client still there, and does its request get on: what runs for nobody, or stands still, is stopped."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.config.serving import LimitsConfig
from slime_ray.serving.gateway.record import record_of
from slime_ray.serving.gateway.refusal import Refusal


class Attending:
    """Cancels what is inside when the client goes away, or when nothing came or was read for `request_seconds`.

    The limit holds for the response's start and for each of its pieces: an engine that hangs ends with 504, within a
    stream with an event; a client that reads nothing loses its connection.
    """

    def __init__(self, app: ASGIApp, *, limits: LimitsConfig) -> None:
        self.app = app
        self.seconds = limits.request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Refusal: 504 for one that does not get on. OpenAI's client would send it again at once; it is told not to.
        """
        request = _Attended(receive, send, self.seconds)
        try:
            await request.run(self.app, scope)
        except Exception:  # whatever the app makes of being cancelled
            if not request.stopped:
                raise
        if not request.stopped:
            return
        if request.gone.is_set() or request.sending:
            record_of(scope).outcome = "gone"
            return
        message = f"nothing came from the model for {self.seconds:g} s"
        raise Refusal(504, message, code="request_timeout", headers={"x-should-retry": "false"})


class _Attended:
    """One request's `receive` and `send`, and the limit that they keep away."""

    def __init__(self, receive: Receive, send: Send, seconds: float) -> None:
        self.gone = asyncio.Event()
        self.sending = False
        self._receive = receive
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._limit = asyncio.timeout(None)
        self._body: Message | None = None
        self._ended = False

    @property
    def stopped(self) -> bool:
        """Whether the limit ended it."""
        return self._limit.expired()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        self._body = await self._receive()
        async with self._limit:
            watch = self._loop.create_task(self._watch())
            self._timer = self._loop.call_later(self._seconds, self._look)
            try:
                await app(scope, self.receive, self.send)
            finally:
                watch.cancel()
                self._timer.cancel()

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return body
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.stopped:
            return  # the app's last words, to nobody
        # Not a timer of its own for each piece: a stream has thousands.
        self._moved = self._loop.time()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True
        self.sending = True
        await self._send(message)
        self.sending = False

    def _look(self) -> None:
        """End what has not moved for so long; what follows a whole response may take its time."""
        still = self._loop.time() - self._moved
        if still < self._seconds:
            self._timer = self._loop.call_later(self._seconds - still, self._look)
        elif not self.stopped and (self.sending or not self._ended):
            self._limit.reschedule(0)

    async def _watch(self) -> None:
        """Wait for the client to go. A server also says so once the response is whole, which ends nothing."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended and not self.stopped:
            self.gone.set()
            self._limit.reschedule(0)
