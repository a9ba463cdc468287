"""One request: what the log, the metrics and the middlewares know of it."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Literal, cast

from starlette.types import Scope

HEALTH = "/health"
METRICS = "/metrics"
MODEL_ROUTE = "/v1/models/{model}"
OTHER = "other"
# A route is one of these words, never a path as it came: what a stranger writes is no label of a metric.
ROUTES = frozenset({HEALTH, METRICS, "/v1/models", "/v1/chat/completions", "/v1/completions"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Printable ASCII: it is sent back in a header and goes through to the engine.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

Outcome = Literal["ok", "refused", "failed", "gone"]


@dataclass(slots=True)
class Record:
    """One request, filled in as it goes through.

    Attributes:
        request_id: the client's X-Request-Id if it is well formed, else one made here.
        key: the name of the API key; None where none was given, was needed, or was right.
        route: one of `ROUTES`, `MODEL_ROUTE` or `OTHER`.
        model: set by the handler once it knows that there is such a model, so of a closed set of names.
        stream: set by the handler before it answers.
        status: of the response; None while there is none, and for a client that went away before it.
        prompt_tokens, completion_tokens: set by the handler, over all choices.
        started: seconds since 1970.
        first_token_s: seconds to the first piece of a streamed answer; None for others.
        seconds: from the request's arrival to the answer's end.
        outcome: gone: the client went away or read nothing; failed: the fault is ours.
        code: of the refusal or failure, as the client sees it.
        prompt, answer: set by the handler where the log is to hold them.
    """

    request_id: str
    method: str
    route: str
    key: str | None = None
    model: str | None = None
    stream: bool = False
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.time)
    first_token_s: float | None = None
    seconds: float = 0.0
    outcome: Outcome = "ok"
    code: str | None = None
    prompt: str | None = None
    answer: str | None = None
    _clock: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def for_health(self) -> bool:
        """Whether it asks for the health, the one thing that needs no key."""
        return self.route == HEALTH and self.method in ("GET", "HEAD")

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the answer by the seconds of the whole request; None where no token came."""
        return self.completion_tokens / self.seconds if self.completion_tokens and self.seconds > 0 else None

    def elapsed(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self._clock


def settle_id(scope: Scope) -> str:
    """A request's id: the client's if it is well formed, else a new one. Inside, X-Request-Id is this alone."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    request_id = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    scope["headers"] = [*others, (b"x-request-id", request_id.encode())]
    return request_id


def begin(scope: Scope) -> Record:
    """The record of a request that has just come; from now on it lies in its scope."""
    method = scope["method"] if scope["method"] in METHODS else OTHER
    record = Record(request_id=settle_id(scope), method=method, route=route_of(scope))
    scope.setdefault("state", {})["record"] = record
    return record


def record_of(scope: Scope) -> Record:
    """The record that lies in a request's scope."""
    return cast(Record, scope["state"]["record"])


def route_of(scope: Scope) -> str:
    """What a request's path asks for, by the same rule as Starlette's router."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    if path in ROUTES:
        return path
    return MODEL_ROUTE if path.startswith("/v1/models/") and len(path) > len("/v1/models/") else OTHER
