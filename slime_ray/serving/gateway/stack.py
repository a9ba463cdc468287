"""The gateway: all middlewares around an app, in the one order that works."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from slime_ray.config.serving import ServingRecipe
from slime_ray.serving.gateway.attendance import Attending
from slime_ray.serving.gateway.authentication import Authenticating
from slime_ray.serving.gateway.body import Reading
from slime_ray.serving.gateway.keys import Keys
from slime_ray.serving.gateway.limits import Limiting, Traffic
from slime_ray.serving.gateway.metrics import Metrics, MetricsPage
from slime_ray.serving.gateway.observation import Observing
from slime_ray.serving.gateway.refusal import Refusing
from slime_ray.serving.gateway.request_log import RequestLog


class Gateway:
    """An ASGI app around another one. It can be pickled until it has served a request."""

    def __init__(self, app: ASGIApp, *, recipe: ServingRecipe, keys: Keys, proxied: bool) -> None:
        """See `gateway`."""
        self.traffic = Traffic(recipe.limits, replicas=recipe.ingress_replicas)
        metrics = Metrics()
        # From the inside out. A body is read only for someone who may ask and has a place.
        attended = Attending(app, limits=recipe.limits)
        inner: ASGIApp = Reading(attended, limits=recipe.limits)
        inner = Limiting(inner, health=attended, traffic=self.traffic)
        inner = MetricsPage(inner, metrics=metrics, traffic=self.traffic)
        inner = Authenticating(inner, keys=keys)
        inner = Refusing(inner)
        if recipe.cors_origins:  # outside of the keys, which a browser's first question does not carry
            inner = CORSMiddleware(
                inner,
                allow_origins=recipe.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=("x-request-id", "retry-after"),
            )
        self._http = Observing(inner, log=RequestLog(recipe.log), metrics=metrics, proxied=proxied)
        self._app = app

    @property
    def in_flight(self) -> int:
        """Requests that run now, without those for the health and the metrics."""
        return self.traffic.running

    def drain(self) -> None:
        """Take no new requests: 503 with Retry-After. Those that run go on."""
        self.traffic.draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve HTTP; let start and stop through; close everything else."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


def gateway(app: ASGIApp, *, recipe: ServingRecipe, keys: Keys, proxied: bool) -> Gateway:
    """What lies between an app and its clients.

    Args:
        app: with the routes of the OpenAI API and /health; its errors come out right with `exception_handlers`.
        recipe: limits, log, origins. Each of `ingress_replicas` keeps its share of the limits.
        keys: who may ask.
        proxied: whether a server in front adds X-Request-Id to every response, as Ray Serve's proxy does.
    """
    return Gateway(app, recipe=recipe, keys=keys, proxied=proxied)
