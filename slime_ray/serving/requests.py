"""A client's request, read as vLLM's: what cannot be read so is the client's mistake; and the text of a reply."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from slime_ray.config.serving import LimitsConfig
from slime_ray.serving.failures import refusal_of
from slime_ray.serving.gateway.refusal import Refusal

INVALID = "invalid_request"
# What engines tell each other: it goes to one as it is, and one fails at what it cannot pack.
_INTERNAL = ("kv_transfer_params", "ec_transfer_params")
_Request = TypeVar("_Request", bound=BaseModel)


def parse(kind: type[_Request], body: bytes) -> _Request:
    """Read a request's JSON.

    Raises:
        RequestValidationError: a field is not of the expected form.
        Refusal: 400, vLLM refuses the request, or cannot read it.
    """
    try:
        request = kind.model_validate_json(body)
        # Some of it is only looked at now: pydantic leaves parts of messages as iterators.
        return _sanitize_chat_completion_request(request) if isinstance(request, ChatCompletionRequest) else request  # pyright: ignore[reportReturnType]
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems) from None
    except VLLM_CLIENT_ERRORS as error:
        raise refusal_of(error) from None
    except Exception:  # vLLM's own validators take a field of another type for what it should be, and fail in any way
        raise Refusal(400, "a field of the request is not of the expected form", code=INVALID) from None


def check(request: BaseModel, model: str, *, limits: LimitsConfig, with_tools: bool) -> None:
    """Refuse what a request may not ask for, and what the model cannot do.

    Raises:
        Refusal: 400 with the numbers.
    """
    said = request.__dict__
    longest = max((said.get(key) or 0 for key in ("max_tokens", "max_completion_tokens")), default=0)
    for key in _INTERNAL:
        if said.get(key) is not None:
            raise Refusal(400, f"{key} is not for clients", code=INVALID, param=key)
    choices = (said.get("n") or 1) * _prompts(said.get("prompt"))
    for key, asked, most in (("max_tokens", longest, limits.max_tokens), ("n", choices, limits.choices)):
        if asked > most:
            times = " (n times the prompts)" if key == "n" and choices != said.get("n") else ""
            message = f"{key} is {asked}{times}; this endpoint gives at most {most}"
            raise Refusal(400, message, code=INVALID, param=key)
    if said.get("tools") and said.get("tool_choice") != "none" and not with_tools:
        message = f"{model} calls no tools: its chat template has none of a known form"
        raise Refusal(400, message, code=INVALID, param="tools")


def text_of(reply: Any) -> str:
    """The text of an engine's reply, or of a batch of a stream's events, for a log that is to hold it."""
    events = [reply.model_dump()] if isinstance(reply, BaseModel) else map(_event, filter(_is_text, reply))
    choices = [choice for event in events for choice in event.get("choices", ())]
    said = [choice.get("message") or choice.get("delta") or choice for choice in choices]
    return "".join(each.get("content") or each.get("text") or "" for each in said)


def _is_text(event: object) -> bool:
    return isinstance(event, str)  # else it is an error in place of a stream


def _event(event: str) -> dict[str, Any]:
    data = event.removeprefix("data: ").strip()
    return {} if data == "[DONE]" else json.loads(data)


def _prompts(prompt: object) -> int:
    """How many prompts a completion is asked for: a text or token ids are one, a list of such as many."""
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
