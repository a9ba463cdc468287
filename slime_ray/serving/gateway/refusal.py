"""Errors in OpenAI's form, and the middleware that turns everything raised inside into one of them.

The form is that of https://platform.openai.com/docs/guides/error-codes; clients choose their exception by the status.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slime_ray.serving.gateway.record import Record, record_of

LOG = logging.getLogger("slime_ray.serving")

_TYPES = {403: "permission_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}


def error_type(status: int) -> str:
    """The `type` of OpenAI's error form for a status of HTTP."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


class Refusal(Exception):  # noqa: N818, most are no fault of ours
    """Raised anywhere inside the gateway, it becomes the response.

    Attributes:
        status: of HTTP.
        message: one sentence for the client: no path, no name of a class, no value of another request.
        code: a constant of this program.
        param: the field of the request that is meant.
        headers: lower-case names.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = error_type(status)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def openai_body(refusal: Refusal) -> bytes:
    """A refusal in OpenAI's form, as JSON."""
    error = {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}
    return json.dumps({"error": error}).encode()


def internal(record: Record) -> Refusal:
    """What a client learns of a fault of ours: that there was one, and what to quote."""
    message = f"the server failed on this request; quote its id, {record.request_id}, to the operator"
    return Refusal(500, message, code="internal_error")


def note(record: Record, refusal: Refusal) -> None:
    """Write down that a request was refused, or failed."""
    record.code = refusal.code
    record.outcome = "refused" if refusal.status < 500 or refusal.status == 503 else "failed"


async def respond(refusal: Refusal, send: Send) -> None:
    """Send a refusal as the whole response."""
    body = openai_body(refusal)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class Refusing:
    """Turns what is raised inside into a response in OpenAI's form; a fault of ours is logged, and never shown.

    After the response began, a stream of events ends with an event that OpenAI's client raises as an APIError. Any
    other response is left incomplete: the server closes the connection, and no client takes a part for the whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        start: Message | None = None
        ended = False

        async def watched(message: Message) -> None:
            nonlocal start, ended
            if message["type"] == "http.response.start":
                start = message
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        record = record_of(scope)
        try:
            await self.app(scope, receive, watched)
            return
        except Refusal as raised:
            refusal = raised
        except Exception:  # the border to the network: whatever it is, a client learns nothing of it
            LOG.exception("request %s failed", record.request_id)
            refusal = internal(record)
        note(record, refusal)
        if start is None:
            await respond(refusal, send)
        elif not ended and _is_event_stream(start):
            await send({"type": "http.response.body", "body": b"data: " + openai_body(refusal) + b"\n\n"})


def _is_event_stream(start: Message) -> bool:
    headers = start.get("headers", ())
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
