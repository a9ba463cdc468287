"""A conversation with a served model, in a terminal or in a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self

import openai
from rich.console import Console

from slime_ray.errors import ConfigError, EndpointError

_HELP = "/reset forgets the conversation, /model NAME asks another, /quit ends; Ctrl-C stops an answer"
# To connect; an answer may take as long as it takes.
_CONNECT_S = 5.0
_READ_S = 600.0
# Of an endpoint's words that are shown, in characters.
_SHOWN = 300
_NO_KEY = "none"


@dataclass(slots=True)
class Chat:
    """What was said so far, and who is asked next."""

    client: openai.OpenAI
    url: str
    model: str
    options: dict[str, Any]
    """Further fields of every request."""
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        model: str | None,
        *,
        url: str,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        api_key_env: str,
    ) -> Self:
        """A new conversation.

        Args:
            model: as the endpoint calls it; None: the only one that it has.
            url: of the endpoint, up to /v1.
            system: what the conversation begins with.
            temperature, max_tokens: None leaves them to the endpoint.
            api_key_env: the environment variable that holds the key, if the endpoint asks for one.

        Raises:
            ConfigError: the key is none that a request can carry.
            EndpointError: the endpoint is down, refuses the key, or does not have the model.
        """
        client = openai.OpenAI(
            base_url=url,
            # Never the client's own default, OPENAI_API_KEY: that key is for one endpoint and not for every one.
            api_key=_api_key(api_key_env),
            timeout=openai.Timeout(_READ_S, connect=_CONNECT_S),
            max_retries=1,
        )
        given = {"temperature": temperature, "max_tokens": max_tokens}
        chat = cls(client, url, "", {key: value for key, value in given.items() if value is not None}, system)
        names = chat.names(hint=f"; it reads the key from {api_key_env}")
        if model is None and len(names) != 1:
            raise EndpointError(f"{url} serves {len(names)} models: {', '.join(names)}; name one: slime-ray chat MODEL")
        chat.turn_to(model or names[0], names)
        chat.reset()
        return chat

    def names(self, *, hint: str = "") -> list[str]:
        """The models of the endpoint.

        Raises:
            EndpointError: it does not say.
        """
        try:
            # As it came: not every address has OpenAI's form behind it.
            reply: Any = self.client.get("/models", cast_to=object)
            listed = json.loads(reply) if isinstance(reply, str) else reply
            return [str(card["id"]) for card in listed["data"]]
        except openai.APIConnectionError:
            raise EndpointError(f"{self.url}: no answer; start one with slime-ray serve, or set --url") from None
        except openai.AuthenticationError as error:
            raise EndpointError(f"{self.url}: {self._said(error)}{hint}") from None
        except openai.OpenAIError as error:
            raise EndpointError(f"{self.url}: {self._said(error)}; expected an OpenAI-compatible endpoint") from None
        except (ValueError, KeyError, TypeError):
            raise EndpointError(f"{self.url}: its /models lists none; expected an OpenAI-compatible endpoint") from None

    def turn_to(self, model: str, names: list[str]) -> None:
        """Ask another model from now on.

        Raises:
            EndpointError: the endpoint does not have it.
        """
        if model not in names:
            raise EndpointError(f"{self.url} has no model {model!r}; it has {', '.join(names) or 'none'}")
        self.model = model

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def ask(self, text: str) -> Generator[str, None, None]:
        """The pieces of an answer as they come; what came of one that was stopped stays in the conversation.

        Raises:
            EndpointError: the endpoint failed; the question is then no part of the conversation.
        """
        self.messages.append({"role": "user", "content": text})
        told: list[str] = []
        try:
            for piece in self._pieces():
                told.append(piece)
                yield piece
        except (openai.OpenAIError, ValueError) as error:
            told.clear()
            raise EndpointError(self._said(error)) from None
        finally:
            if told:
                self.messages.append({"role": "assistant", "content": "".join(told)})
            else:
                self.messages.pop()

    def _said(self, error: Exception) -> str:
        """An endpoint's own words, in one line; some repeat the key that they were given."""
        body = error.body if isinstance(error, openai.APIError) else None
        said = body.get("message") if isinstance(body, dict) else None
        reason = said if isinstance(said, str) else str(error.__cause__ or error)
        if self.client.api_key != _NO_KEY:
            reason = reason.replace(self.client.api_key, "[the key]")
        status = f"{error.status_code}: " if isinstance(error, openai.APIStatusError) else ""
        return status + " ".join(reason.split())[:_SHOWN]

    def _pieces(self) -> Iterator[str]:
        messages: Any = self.messages
        # Closed also when nobody reads on, so that the server stops.
        with self.client.chat.completions.create(
            model=self.model, messages=messages, stream=True, **self.options
        ) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        yield choice.delta.content


def talk(chat: Chat) -> None:
    """Ask and answer in turns, until the user ends it."""
    console = Console()
    console.print(f"{chat.model} at {chat.url}; {_HELP}", style="dim", markup=False, highlight=False)
    while True:
        try:
            text = console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        command, _, argument = text.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                chat.reset()
            elif command == "/model" and argument:
                chat.turn_to(argument.strip(), chat.names())
            elif command.startswith("/"):
                console.print(_HELP, style="dim", markup=False)
            elif text:
                _stream(chat, text, console)
        except EndpointError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)


def answer_pipe(chat: Chat) -> None:
    """Ask what comes in through standard input, and print the answer alone.

    Raises:
        ConfigError: nothing came in.
        EndpointError: there is no whole answer.
    """
    text = sys.stdin.read().strip()
    if not text:
        raise ConfigError("standard input has no question; expected one, as in: echo QUESTION | slime-ray chat MODEL")
    for piece in chat.ask(text):
        print(piece, end="", flush=True)
    print()


def _stream(chat: Chat, text: str, console: Console) -> None:
    try:
        with closing(chat.ask(text)) as pieces:
            for piece in pieces:
                console.print(_shown(piece), end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [stopped]", style="dim", end="", markup=False)
    console.print()


def _shown(text: str) -> str:
    """A model's words without what would steer the terminal."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        # An HTTP header could not hold it, and the error that says so would show it.
        raise ConfigError(f"{variable} holds a line break or a character that no key has; export the key alone")
    return key or _NO_KEY
