"""What Prometheus reads: requests, tokens, speed, refusals, by model and key.

Labels take values of closed sets only: names of models that are served, names of keys, routes of a list. Each process
(a replica of the ingress) shows its own.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from slime_ray.serving.gateway.limits import Traffic
from slime_ray.serving.gateway.record import METRICS, Record, record_of

# Seconds, from a cached word on a GPU to a long prompt on a laptop's CPU.
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS_PER_S = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
_NONE = "-"  # no name of a key or a model begins so


class _Instruments:
    """The metrics themselves; they hold locks, so they are made in the process that serves."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        by_model = ["model", "key"]
        self.requests = Counter(
            "slime_ray_requests", "Requests that are over.", [*by_model, "route", "status"], registry=own
        )
        self.seconds = Histogram(
            "slime_ray_request_seconds", "Whole requests.", ["model", "route"], registry=own, buckets=_SECONDS
        )
        self.first_token = Histogram(
            "slime_ray_time_to_first_token_seconds", "Of streams.", by_model, registry=own, buckets=_FIRST_TOKEN_S
        )
        self.prompt_tokens = Counter("slime_ray_prompt_tokens", "Tokens of prompts.", by_model, registry=own)
        self.completion_tokens = Counter("slime_ray_completion_tokens", "Tokens of answers.", by_model, registry=own)
        self.speed = Histogram(
            "slime_ray_tokens_per_second",
            "Tokens of an answer by the seconds of its request.",
            by_model,
            registry=own,
            buckets=_TOKENS_PER_S,
        )
        self.in_flight = Gauge("slime_ray_requests_in_flight", "Requests that run now.", ["key"], registry=own)
        self.draining = Gauge("slime_ray_draining", "1 while no new request is taken.", registry=own)
        self.refused = Counter("slime_ray_refused", "Requests that were refused, or failed.", ["code"], registry=own)
        self.gone = Counter("slime_ray_gone", "Clients that went away before the end.", ["model"], registry=own)
        self.log_failures = Counter("slime_ray_log_failures", "Lines that the request log lost.", registry=own)


class Metrics:
    """Counts requests that are over."""

    def __init__(self) -> None:
        self._made: _Instruments | None = None

    @property
    def _instruments(self) -> _Instruments:
        if self._made is None:
            self._made = _Instruments()
        return self._made

    def observe(self, record: Record, *, logged: bool) -> None:
        """Count one request, and whether its line in the log was lost."""
        count = self._instruments
        model = record.model or _NONE
        key = record.key or _NONE
        status = str(record.status or _NONE)
        count.requests.labels(model, key, record.route, status).inc()
        count.seconds.labels(model, record.route).observe(record.seconds)
        if record.first_token_s is not None:
            count.first_token.labels(model, key).observe(record.first_token_s)
        if record.prompt_tokens:
            count.prompt_tokens.labels(model, key).inc(record.prompt_tokens)
        if record.completion_tokens:
            count.completion_tokens.labels(model, key).inc(record.completion_tokens)
        if record.outcome == "ok" and record.tokens_per_s is not None:
            count.speed.labels(model, key).observe(record.tokens_per_s)
        if record.outcome == "gone":
            count.gone.labels(model).inc()
        elif record.outcome != "ok":
            count.refused.labels(record.code or _NONE).inc()
        if not logged:
            count.log_failures.inc()

    def render(self, traffic: Traffic) -> bytes:
        """Everything, in Prometheus' text form."""
        count = self._instruments
        for key, running in traffic.by_key.items():
            count.in_flight.labels(key or _NONE).set(running)
        count.draining.set(traffic.draining)
        return generate_latest(count.registry)


class MetricsPage:
    """Answers GET /metrics; all else goes on."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, traffic: Traffic) -> None:
        self.app = app
        self.metrics = metrics
        self.traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        record = record_of(scope)
        if record.route != METRICS or record.method not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        page = self.metrics.render(self.traffic)
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", str(len(page)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page if record.method == "GET" else b""})
