"""The application that Ray Serve runs: an ingress that speaks OpenAI's protocol, before one engine a checkpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayError
from ray.llm._internal.serve.core.ingress.ingress import CallMethod
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from slime_ray.config.serving import LimitsConfig, RequestLogConfig, ServingRecipe
from slime_ray.serving.engine import calls_tools, check_room, engine_deployment, is_running, version_of
from slime_ray.serving.failures import engine_lost, is_cancellation, refusal_in_stream, refusal_of
from slime_ray.serving.gateway.app_errors import exception_handlers
from slime_ray.serving.gateway.keys import Keys, check_host
from slime_ray.serving.gateway.limits import RETRY_AFTER_S
from slime_ray.serving.gateway.record import Record, record_of
from slime_ray.serving.gateway.refusal import Refusal
from slime_ray.serving.gateway.stack import Gateway, gateway
from slime_ray.serving.requests import check, parse, text_of
from slime_ray.serving.served import Card, Served

NAME = "slime-ray"
"""The application's name on a cluster: deploying under it again replaces what runs."""

_ROUTES: dict[str, Callable[[FastAPI], Callable[..., Any]]] = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "health": lambda app: app.api_route("/health", methods=["GET", "HEAD"]),
}
_HEALTH_WAIT_S = 5.0
_REPLACED_LOOK_S = 0.5
_GOODBYE_S = 2.0
_LOST_LOOK_S = 1.0
_FENCE = 1024  # requests that an ingress has at once beyond those that have a place, and that the proxy keeps for it


def build(recipe: ServingRecipe, models: Sequence[Served], *, wait_for_room: bool = False) -> Application:
    """The application of a recipe: an engine for each checkpoint, the ingress before them.

    Args:
        recipe: the endpoint's.
        models: what it serves, see `sources.resolve`.
        wait_for_room: engines that the cluster has no room for wait for it, since it is still growing.

    Raises:
        ServingError: the cluster has no room, or the host needs keys and there are none.
    """
    keys = Keys.load(recipe.keys)
    check_host(recipe.host, keys)
    engines = {served.card.name: engine_deployment(served, recipe) for served in models}
    if not wait_for_room:
        check_room([served for served in models if not is_running(engines[served.card.name], app=NAME)])
    by_name = {card.name: (card, served) for served in models for card in served.cards}
    handlers: Any = exception_handlers()
    # A redirect to the path without its slash would name the host that the client said it asked.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, exception_handlers=handlers)
    app.add_middleware(_guarded, recipe=recipe, keys=keys)  # pyright: ignore[reportArgumentType]
    ingress: Any = make_fastapi_ingress(Ingress, endpoint_map=_ROUTES, app=app)
    deployment: Any = serve.deployment(ingress, **_ingress_options(recipe))
    return deployment.bind(
        llm_deployments={name: engines[served.card.name] for name, (_, served) in by_name.items()},
        model_cards={name: _shown(card, served) for name, (card, served) in by_name.items()},
        versions={name: version_of(engine) for name, engine in engines.items()},
        limits=recipe.limits,
        log=recipe.log,
        with_tools=frozenset(name for name, (_, served) in by_name.items() if calls_tools(served)),
    )


def _guarded(app: ASGIApp, *, recipe: ServingRecipe, keys: Keys) -> Gateway:
    """The gateway around the app of a replica, which has its process for itself."""
    Ingress.gateway = gateway(app, recipe=recipe, keys=keys, proxied=True)
    return Ingress.gateway


class Ingress(OpenAiIngress):
    """Ray's ingress with our limits, cards and errors, and what a request used noted in its record."""

    gateway: ClassVar[Gateway | None] = None
    """Of this process; None before its first request."""

    async def __init__(
        self,
        llm_deployments: Mapping[str, DeploymentHandle],
        model_cards: Mapping[str, dict[str, Any]],
        *,
        versions: Mapping[str, str],
        limits: LimitsConfig,
        log: RequestLogConfig,
        with_tools: frozenset[str],
    ) -> None:
        """Ready once what answers is what the cards say: until then the ingress of before goes on, with its own."""
        super().__init__(dict(llm_deployments), dict(model_cards))  # pyright: ignore[reportArgumentType]
        self._limits, self._log, self._with_tools = limits, log, with_tools
        self._healthy: tuple[float, dict[str, bool]] = (-_HEALTH_WAIT_S, {})
        await asyncio.gather(*(self._replaced(name, version) for name, version in versions.items()))

    async def _replaced(self, name: str, version: str) -> None:
        """Wait while the engine of before answers; for one that is away there is no need."""
        with suppress(TimeoutError, RayError):
            while await self._asked(name, "version") != version:
                await asyncio.sleep(_REPLACED_LOOK_S)

    async def _asked(self, name: str, method: str) -> Any:
        """What a model's engine says, within a time."""
        async with asyncio.timeout(_HEALTH_WAIT_S):
            return await getattr(self._default_serve_handles[name], method).remote()

    async def drain(self) -> int:
        """Take no new requests; how many are running still."""
        if Ingress.gateway is None:
            return 0
        Ingress.gateway.drain()
        return Ingress.gateway.in_flight

    async def models(self) -> Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All models, with their lineage."""
        return JSONResponse({"object": "list", "data": list(self._model_cards.values())})

    async def model_data(self, model: str) -> Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One model."""
        card = self._model_cards.get(model)
        if card is None:
            raise self._unknown(model)
        return JSONResponse(card)

    async def health(self) -> Response:
        """200 where every model's engine is up, else 503; asked of the engines at most once a second."""
        asked, up = self._healthy
        if time.monotonic() - asked > 1.0:
            names = list(self._default_serve_handles)
            found = await asyncio.gather(*(self._is_up(name) for name in names))
            up = dict(zip(names, found, strict=True))
            self._healthy = (time.monotonic(), up)
        whole = all(up.values())
        return JSONResponse({"status": "ok" if whole else "unavailable"}, status_code=200 if whole else 503)

    async def _is_up(self, name: str) -> bool:
        if self._is_away(name):
            return False
        try:
            await self._asked(name, "check_health")
        except (TimeoutError, BackPressureError):
            return True  # it is full; one that hangs Ray itself starts anew
        except Exception:  # whatever it is: the engine did not say that it is well
            return False
        return True

    def _is_away(self, model: str) -> bool:
        """Whether a model's engine was lost and is not back: Ray would keep its requests, and they their places."""
        router = self._default_serve_handles[model]._router
        if router is None or not router.running_replicas_populated():
            return False
        return not router._asyncio_router.request_router.curr_replicas  # pyright: ignore[reportAttributeAccessIssue]

    async def _get_model_id(self, model: str | None) -> str:
        """The model that is asked, or the only one."""
        if model is None and len(self._model_cards) == 1:
            return next(iter(self._model_cards))
        if model not in self._model_cards:
            raise self._unknown(model)
        return model

    def _unknown(self, model: str | None) -> Refusal:
        names = ", ".join(sorted(self._model_cards))
        asked = "The request names no model" if model is None else "There is no such model"
        return Refusal(404, f"{asked}; this endpoint has {names}", code="model_not_found", param="model")

    async def completions(self, request: Request) -> Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Completions of a prompt."""
        return await self._answer(CompletionRequest, CallMethod.COMPLETIONS, request)

    async def chat(self, request: Request) -> Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The next message of a conversation."""
        return await self._answer(ChatCompletionRequest, CallMethod.CHAT, request)

    async def _answer(self, kind: type[BaseModel], method: CallMethod, request: Request) -> Response:
        body: Any = parse(kind, await request.body())
        model = await self._get_model_id(body.model)
        record = record_of(request.scope)
        record.model, record.stream = model, bool(body.stream)
        if self._log.text:
            record.prompt = body.model_dump_json(include={"messages", "prompt"})
        check(body, model, limits=self._limits, with_tools=model in self._with_tools)
        if self._is_away(model):
            raise engine_lost()
        try:
            return await self._process_llm_request(body, method.value, request)
        except Exception as error:
            raise refusal_of(error) from error

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        """The engine's replies; their usage is noted, and of a stream given on only where it was asked for."""
        assert raw_request is not None
        record = record_of(raw_request.scope)
        asked = body.stream_options if body.stream else None
        if body.stream:
            continuous = bool(asked and asked.continuous_usage_stats)
            body.stream_options = StreamOptions(include_usage=True, continuous_usage_stats=continuous)
        told = bool(asked and asked.include_usage)
        model = await self._get_model_id(body.model)
        engine = self._get_configured_serve_handle(model)
        # The engine sees the request's id, and no key.
        headers = {"x-request-id": record.request_id}
        replies, whole = getattr(engine, call_method).remote(body, RawRequestInfo(headers=headers)), False
        try:
            reply = await self._first(replies, model)
            while reply is not None:
                if record.prompt is not None:
                    record.answer = (record.answer or "") + text_of(reply)
                if not isinstance(reply, list):
                    _note(getattr(reply, "usage", None), record)
                    yield reply
                elif not isinstance(reply[0], str):
                    yield reply  # an error instead of a stream, which Ray's ingress raises
                elif events := [event for event in reply if _passed_on(event, record) or told]:
                    yield events
                reply = await anext(replies, None)
            whole = True
        except Exception as error:
            if is_cancellation(error):
                # Ray may tell the engine that the client left before it tells us, which cancels this request here.
                await asyncio.sleep(_GOODBYE_S)
            raise refusal_of(error) from error
        finally:
            if not whole:
                replies.cancel()  # else the engine goes on for a client that has left

    async def _first(self, replies: AsyncIterator[Any], model: str) -> Any:
        """The first reply; an engine that is lost meanwhile is not waited for, as Ray would until it is back."""
        reply = asyncio.ensure_future(anext(replies, None))
        try:
            while not (await asyncio.wait([reply], timeout=_LOST_LOOK_S))[0]:
                if self._is_away(model):
                    raise engine_lost()
            return reply.result()
        finally:
            reply.cancel()


def _note(usage: Any, record: Record) -> None:
    if usage is not None:
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens or 0


def _passed_on(event: str, record: Record) -> bool:
    """Whether a stream's event is more than the usage, which is noted.

    Raises:
        Refusal: the event is an error, which vLLM tells in an exception's own words.
    """
    if event.startswith('data: {"error"'):
        raise refusal_in_stream(json.loads(event.removeprefix("data: "))["error"])
    if '"choices":[],' not in event:
        return True
    _note(UsageInfo.model_validate(json.loads(event.removeprefix("data: "))["usage"]), record)
    return False


def _shown(card: Card, served: Served) -> dict[str, Any]:
    """A model as /v1/models has it: OpenAI's fields and `lineage`."""
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": NAME,
        "max_model_len": served.settings.max_model_len,
        "lineage": card.lineage,
    }


def _ingress_options(recipe: ServingRecipe) -> dict[str, Any]:
    # The gateway turns away what is too much, by key and with a reason; what Serve lets wait is only a second fence.
    # Its own refusals are no JSON, so it is out of the way of all but a flood.
    most = recipe.limits.concurrent + _FENCE
    return {
        "name": "Ingress",
        "num_replicas": recipe.ingress_replicas,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": most,
        "max_queued_requests": most,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": recipe.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": 100,
        "max_constructor_retry_count": 2,
    }
