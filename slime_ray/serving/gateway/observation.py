"""The outermost middleware: gives a request its record and its id, and writes down what came of it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.serving.gateway.metrics import Metrics
from slime_ray.serving.gateway.record import begin
from slime_ray.serving.gateway.request_log import RequestLog


class Observing:
    """Looks at the first piece of an answer and its end; what lies between passes untouched.

    Args:
        app: what is observed.
        log, metrics: where a request is written down when it is over.
        proxied: whether a server in front adds X-Request-Id to every response, as Ray Serve's proxy does.
    """

    def __init__(self, app: ASGIApp, *, log: RequestLog, metrics: Metrics, proxied: bool) -> None:
        self.app = app
        self.log = log
        self.metrics = metrics
        self.proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        record = begin(scope)
        own = [] if self.proxied else [(b"x-request-id", record.request_id.encode())]

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"x-request-id"]
                message = {**message, "headers": kept + own}
            elif record.first_token_s is None and record.stream and record.status == 200 and message.get("body"):
                record.first_token_s = record.elapsed()
            await send(message)

        try:
            await self.app(scope, _heard(receive) if self.proxied else receive, observed)
        except asyncio.CancelledError:  # so a server says that the client went away, or that it stops
            record.outcome = "gone"
            raise
        finally:
            record.seconds = record.elapsed()
            if record.outcome == "ok" and record.status is not None and record.status >= 400:
                record.outcome = "refused" if record.status < 500 else "failed"
            # Probes ask for the health every few seconds.
            logged = (record.for_health and record.outcome == "ok") or self.log.write(record)
            self.metrics.observe(record, logged=logged)


def _heard(receive: Receive) -> Receive:
    """A `receive` for behind Ray's proxy, whose own one may raise where the client has left, instead of saying so."""

    async def heard() -> Message:
        try:
            return await receive()
        except Exception:  # of Ray's, while it ends the request
            return {"type": "http.disconnect"}

    return heard
