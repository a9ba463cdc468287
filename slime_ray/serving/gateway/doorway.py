"""What stands before Ray Serve's own HTTP proxy, which answers and obeys before any app of ours sees a request.

The proxy is told of it by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH = "slime_ray.serving.gateway.doorway.middlewares",
in the environment that Ray is started in; slime_ray has to be installed there, or the proxy does not start.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from slime_ray.serving.gateway.record import settle_id
from slime_ray.serving.gateway.refusal import Refusal, respond

# By these a client would choose its own time limit, have its request run on when it is gone, or choose a replica; the
# proxy also fails on bytes in them that are no UTF-8 (ray/serve/_private/proxy.py, Ray 2.60).
_OBEYED = frozenset(
    {"x-request-timeout-seconds", "x-request-disconnect-disabled", "serve-multiplexed-model-id", "x-session-id"}
)
_ROUTES = "/-/routes"  # of the proxy, for whoever asks


class Doorway:
    """Takes out of a request what only the proxy would read; the list of applications is not shown."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scope["headers"] = [(name, value) for name, value in scope["headers"] if not _is_obeyed(name)]
            settle_id(scope)
            if scope["path"].endswith(_ROUTES):
                await respond(Refusal(404, "Not Found", code="not_found"), send)
                return
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy is wrapped in."""
    return [Middleware(Doorway)]


def _is_obeyed(name: bytes) -> bool:
    return name.decode("latin-1").lower().replace("_", "-") in _OBEYED
