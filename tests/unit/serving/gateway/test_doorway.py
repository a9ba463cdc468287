"""What never reaches Ray Serve's own proxy: orders from clients, ill-formed ids, the question for its applications."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from slime_ray.serving.gateway.doorway import Doorway, middlewares
from tests.unit.serving.gateway.asgi import JSON, answer, called, fine


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"X-Session-Id",
    ],
)
def test_the_proxy_gets_no_orders(name: bytes) -> None:
    inside: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.append(scope["headers"])
        await answer(send)

    assert called(Doorway(app), headers=[JSON, (name, b"\xff"), (b"x-request-id", b"mine")]).status == 200
    assert inside == [[JSON, (b"x-request-id", b"mine")]]


@pytest.mark.parametrize("given", [[b"\xff"], [b""], [b"a b"], [b"x" * 129], [], [b"\xff", b"mine"]])
def test_the_proxy_gets_an_id_that_it_can_read(given: list[bytes]) -> None:
    inside: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        await answer(send)

    called(Doorway(app), headers=[(b"x-request-id", value) for value in given])
    (made,) = inside
    assert len(made.decode("ascii")) == 32


def test_the_proxy_is_wrapped_in_it() -> None:
    assert [middleware.cls for middleware in middlewares()] == [Doorway]


def test_the_applications_are_nobodys_business() -> None:
    app = Doorway(fine)
    for path in ("/-/routes", "/prefix/-/routes"):
        assert (called(app, "GET", path).status, called(app, "GET", path).error["code"]) == (404, "not_found")
    assert called(app, "GET", "/-/healthz").status == 200
    assert called(app, "GET", "/-/routes", type_="lifespan").status is None
