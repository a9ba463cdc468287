"""What the app inside raises, as refusals: handlers for FastAPI, and messages without what is nobody's business."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from slime_ray.serving.gateway.record import record_of
from slime_ray.serving.gateway.refusal import Refusal, internal, note, openai_body

ExceptionHandlers = dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]

_LONGEST = 400
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 503: "unavailable"}
# What may stand in an engine's message and is no client's business.
_CLASS = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Failure|Interrupt|Exit)(?:\([^)]*\))?\s*:\s*)+")
_SECRETS = re.compile(
    r"""
      File\ "[^"]*"(?:,\ line\ \d+)?(?:,\ in\ \S+)?       # a line of a traceback
    | <[^<>]*\bat\ 0x[^<>]*>                              # an object
    | \b0x[0-9a-fA-F]+\b
    | \b\w+://[^\s'"]+                                    # a URL
    | '(?:/|~/|\.{1,2}/|[A-Za-z]:\\)[^']*'                # a path in quotes may have spaces
    | "(?:/|~/|\.{1,2}/|[A-Za-z]:\\)[^"]*"
    | (?<![\w.])(?:~|\.{1,2})?/[^\s'",;()]*[^\s'",;().:]  # a path
    | \b[A-Za-z]:\\[^\s'"]*
    | \b(?:[\w.\-]+/)+[\w.\-]*\.[A-Za-z]\w{0,11}(?::\d+)? # a file in a folder
    | \b[\w.\-]+\.(?:py|so|json|safetensors)\b(?::\d+)?
    | \b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b                # an address
    | (?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:])
    | \b[\w\-]+(?:\.[\w\-]+)*:\d{2,5}\b                   # a host and its port
    | \b[0-9a-f]{16,}\b                                   # an id of Ray's
    | \b(?:ray|vllm|slime_ray|torch|transformers)(?:\.\w+)+ # a module
    """,
    re.VERBOSE,
)


def scrubbed(message: str) -> str:
    """An engine's message for a client: one line, without paths, addresses, objects and names of classes.

    Numbers stay, as in "maximum context length is 256 tokens".
    """
    line = next((line.strip() for line in message.splitlines() if line.strip()), "")
    line = "".join(character if character.isprintable() else " " for character in line[: 2 * _LONGEST])
    line = _SECRETS.sub("[...]", _CLASS.sub("", line)).strip()
    return (line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}...") or "the request cannot be served"


def exception_handlers() -> ExceptionHandlers:
    """Handlers for `FastAPI(exception_handlers=...)`: everything in OpenAI's form."""
    return {
        Refusal: _on_refusal,
        HTTPException: _on_http,
        RequestValidationError: _on_validation,
        Exception: _on_fault,
    }


def _response(request: Request, refusal: Refusal) -> Response:
    note(record_of(request.scope), refusal)
    return Response(openai_body(refusal), refusal.status, refusal.headers, "application/json")


async def _on_refusal(request: Request, error: Refusal) -> Response:
    return _response(request, error)


async def _on_fault(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this, and `Refusing` logs it.
    return _response(request, internal(record_of(request.scope)))


async def _on_http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    if status >= 500 and status != 503:
        message = internal(record_of(request.scope)).message
    else:
        message = scrubbed(str(error.detail))
    code = _CODES.get(status, "invalid_request" if status < 500 else "internal_error")
    kept = {name.lower(): value for name, value in (error.headers or {}).items()}
    headers = {name: value for name, value in kept.items() if name in ("allow", "retry-after")}
    return _response(request, Refusal(status, message, code=code, headers=headers))


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    problems = error.errors()
    first: Mapping[str, Any] = problems[0] if problems else {}
    # A place begins with "body", and may end with members of unions, which no client wrote.
    place = ".".join(str(part) for part in first.get("loc", ())[1:])
    param = scrubbed(place)[:64] if place else None
    said = scrubbed(str(first.get("msg", "the request is not of the expected form")))
    message = f"{param}: {said}" if param else said
    return _response(request, Refusal(400, message, code="invalid_request", param=param))
