"""A request's body: read whole within its limits of size and time, and looked at before any parser sees it."""

from __future__ import annotations

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.config.serving import LimitsConfig
from slime_ray.serving.gateway.json_scan import problem
from slime_ray.serving.gateway.record import record_of
from slime_ray.serving.gateway.refusal import Refusal

# A page of another site cannot send this type without asking first, so it also keeps browsers out where no key does.
_JSON = re.compile(rb'application/json *(?:; *charset="?utf-8"? *)?', re.IGNORECASE)
_CLOSE = {"connection": "close"}


class Reading:
    """Hands a body on as one message; it is never larger in memory than `body_bytes`."""

    def __init__(self, app: ASGIApp, *, limits: LimitsConfig) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Refusal: 413 for too large a body, 408 for too slow a one, 400 for one that is no JSON; the rest of it is
                not read.
        """
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:19]) > self.limits.body_bytes:
                raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._whole(receive)
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.body_seconds:g} s"
            raise Refusal(408, message, code="body_timeout", headers=_CLOSE) from None
        if body is None:
            record_of(scope).outcome = "gone"
            return
        if body:
            _check_json(scope, body)
        await self.app(scope, _Replay(body, receive), send)

    async def _whole(self, receive: Receive) -> bytes | None:
        """The body; None if the client went away before its end."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        message = f"the body is larger than {self.limits.body_bytes:,} bytes, the most that is taken"
        return Refusal(413, message, code="body_too_large", headers=_CLOSE)


class _Replay:
    """A `receive` that gives a body that was read, and then what the server says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return await self._receive() if message is None else message


def _check_json(scope: Scope, body: bytes) -> None:
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    if len(types) != 1 or not _JSON.fullmatch(types[0]):
        raise Refusal(400, "expected one header 'Content-Type: application/json'", code="invalid_content_type")
    found = problem(body)
    if found is not None:
        raise Refusal(400, f"the body is {found}", code="invalid_json")
