"""The server's side of a certificate: what vLLM says over HTTP of prompts, log-probabilities and stops."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai

from slime_ray.data.messages import Message
from slime_ray.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from slime_ray.serving.trained import Row, Side

# Requests on their way at once.
_AT_ONCE = 4
_TIMEOUT_S = 600.0
# Of a server's words that are shown.
_SHOWN = 300
# What an answer is asked to of which only the end matters.
_PROBE = [{"role": "user", "content": "hello"}]


class Asked:
    """One model of a server.

    Attributes:
        server: how the server names itself in its answers, such as vllm-0.29.0-1a2b3c4d; None until one does.
    """

    def __init__(self, base_url: str, *, model: str, api_key_env: str | None) -> None:
        """Raises ConfigError if the environment has no such variable."""
        key = os.environ.get(api_key_env, "").strip() if api_key_env else "none"
        if not key:
            raise ConfigError(f"api_key_env = {api_key_env!r}: the environment has no such variable; export it")
        self.server: str | None = None
        self._url = base_url
        self._model = model
        # Retries are the client's: 429, 5xx and broken connections, with growing waits.
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=_TIMEOUT_S, max_retries=4)

    def look(self) -> int | None:
        """The tokens that the server takes, prompt and answer together, if its card of the model says so.

        Raises:
            EndpointError: it is down, refuses the key, or has no such model.
        """
        cards = self._asked("GET", "/models")["data"]
        card = next((card for card in cards if card["id"] == self._model), None)
        if card is None:
            known = ", ".join(card["id"] for card in cards)
            raise EndpointError(f"{self._url} has no model {self._model!r}; it has {known}")
        length = card.get("max_model_len")
        return length if isinstance(length, int) else None

    def prompts(self, rows: Sequence[Row]) -> list[list[int] | str]:
        """The token ids that the server makes of each row's prompt, or why it refuses it.

        Raises:
            EndpointError: the server is down, or does not say.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(self._prompt, rows))

    def logps(self, sides: Sequence[Side]) -> list[list[float]]:
        """log pi(token | context) of every token of each answer, in nats.

        Raises:
            EndpointError: the server is down, or does not say.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(self._answer, sides))

    def stops_after(self, number: int) -> bool:
        """Whether the server ends an answer after a token, where it may give no other.

        Raises:
            EndpointError: the server is down, or gives other tokens.
        """
        # Room for two: one alone would be the last, whether it stops or not.
        body = {"messages": _PROBE, "max_tokens": 2, "allowed_token_ids": [number], "return_token_ids": True}
        choice = self._asked("POST", "/chat/completions", body)["choices"][0]
        if set(choice.get("token_ids") or ()) != {number}:
            raise EndpointError(
                f"{self._url}: asked for token {number} alone (allowed_token_ids), it gave {choice.get('token_ids')}; "
                "expected vLLM"
            )
        return choice["finish_reason"] == "stop"

    def _prompt(self, row: Row) -> list[int] | str:
        body = {**_chat(row), "max_tokens": 1, "return_token_ids": True}
        try:
            answer = self._asked("POST", "/chat/completions", body)
        except _RefusedError as error:
            return error.said
        ids = answer.get("prompt_token_ids")
        if not isinstance(ids, list):
            raise EndpointError(f"{self._url}: it does not tell a prompt's tokens (return_token_ids); expected vLLM")
        return ids

    def _answer(self, side: Side) -> list[float]:
        ids = [*side.prompt, *side.answer]
        answer = self._asked("POST", "/completions", {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0})
        told = answer["choices"][0].get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(ids):
            raise EndpointError(
                f"{self._url}: it does not tell the log-probabilities of a prompt's tokens (prompt_logprobs); expected "
                "vLLM"
            )
        # The first of all has no context, and none is told.
        return [float(told[place][str(ids[place])]["logprob"]) for place in range(len(side.prompt), len(ids))]

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that answers a request.

        Raises:
            _RefusedError: the server refuses this request.
            EndpointError: anything else.
        """
        try:
            if method == "GET":
                answer: Any = self._client.get(path, cast_to=object)
            else:
                answer = self._client.post(path, body={"model": self._model, **(body or {})}, cast_to=object)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _RefusedError(self._url, _line(error.message)) from None
        except openai.APIStatusError as error:
            hint = "; look at the key" if error.status_code in (401, 403) else ""
            raise EndpointError(f"{self._url}{path}: {error.status_code}: {_line(error.message)}{hint}") from None
        except openai.APIError as error:
            raise EndpointError(
                f"{self._url}{path}: {_line(error.message)}; start the server or correct the address"
            ) from None
        answer = json.loads(answer) if isinstance(answer, str) else answer
        self.server = answer.get("system_fingerprint") or self.server
        return answer


class _RefusedError(EndpointError):
    """The server answers, and does not take a request."""

    def __init__(self, url: str, said: str) -> None:
        super().__init__(f"{url}: it refuses a request: {said}")
        self.said = said


def _line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]


def _chat(row: Row) -> dict[str, Any]:
    """A row's prompt in OpenAI's form. Its tools are shown to the model, and none is to be called."""
    tools = {"tools": list(row.tools), "tool_choice": "none"} if row.tools else {}
    return {"messages": [_message(message, turn) for turn, message in enumerate(row.prompt)], **tools}


def _message(message: Message, turn: int) -> Message:
    """Templates get a call's arguments as values; OpenAI's form has them as a JSON text, and every call with an id."""
    if "tool_calls" not in message:
        return message
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({"id": f"call-{turn}-{number}", **call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}
