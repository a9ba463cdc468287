"""What an engine's failure is to a client: a status, a sentence, and whether to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS, VLLM_FATAL_ERRORS
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from starlette.exceptions import HTTPException

from slime_ray.serving.gateway.app_errors import scrubbed
from slime_ray.serving.gateway.limits import RETRY_AFTER_S
from slime_ray.serving.gateway.refusal import Refusal

_AGAIN = {"retry-after": str(RETRY_AFTER_S)}
_INVALID = "invalid_request"
_DEAD = frozenset(str(kind()) for kind in VLLM_FATAL_ERRORS)
_CANCELLED = (RequestCancelledError, TaskCancelledError)
_GONE = (RayActorError, DeploymentUnavailableError, *_CANCELLED, *VLLM_FATAL_ERRORS)


def engine_lost() -> Refusal:
    """The refusal of what only an engine that is away could answer."""
    message = "The model's engine was lost; it is being started again"
    return Refusal(503, message, code="engine_unavailable", headers=_AGAIN)


def is_cancellation(error: Exception) -> bool:
    """Whether Ray ended what an engine did, as it does for a client that left."""
    return isinstance(_cause_of(error), _CANCELLED)


def refusal_of(error: Exception | None) -> Refusal:
    """The refusal that stands for what an engine, or the way to it, raised; no words of an exception are in it.

    What a client may have caused (400, 404, 408) is told in vLLM's words without its paths and classes; an engine
    that is gone is 503, a full queue 429, all else 500.
    """
    if isinstance(error, Refusal):
        return error
    error = _cause_of(error)
    if isinstance(error, BackPressureError):
        return Refusal(429, "The model's queue is full; ask again later", code="queue_full", headers=_AGAIN)
    if isinstance(error, _GONE):
        return engine_lost()
    if isinstance(error, OpenAIHTTPException) and error.status_code < 500:
        return Refusal(error.status_code, scrubbed(error.message), code=_INVALID)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return Refusal(error.status_code, scrubbed(str(error.detail)), code=_INVALID)
    if isinstance(error, VLLM_CLIENT_ERRORS):
        return Refusal(400, scrubbed(str(error)), code=_INVALID)
    if isinstance(error, RayError):
        return Refusal(503, "The model cannot be reached", code="engine_unavailable", headers=_AGAIN)
    return Refusal(500, "The model failed at this request", code="engine_error")


def _cause_of(error: Exception | None) -> Exception | None:
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    return error


def refusal_in_stream(error: Mapping[str, Any]) -> Refusal:
    """As `refusal_of`, for an error that vLLM writes into a stream: {"message", "code", ...}."""
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 500:
        return Refusal(code, scrubbed(str(error.get("message"))), code=_INVALID)
    if error.get("message") in _DEAD:
        return engine_lost()
    return refusal_of(None)
