"""One endpoint for all tests of this folder. `test_stopping` stops it, and is last by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import httpx2
import openai
import pytest

from tests import served
from tests.served import Serving


class AsyncCalls(Protocol):
    """Runs a function with OpenAI's asynchronous client."""

    def __call__(
        self, calls: Callable[[openai.AsyncOpenAI], Awaitable[Any]], *, key: str = "first", retries: int = 0
    ) -> Any:
        """The function's result."""


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A tiny trained run, served by the command line with keys and low limits."""
    with served.running(tmp_path_factory.mktemp("serving")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which tries nothing twice."""
    with client_of(serving) as client:
        yield client


def client_of(serving: Serving, *, key: str | None = None, retries: int = 0) -> openai.OpenAI:
    """OpenAI's client with a key."""
    transport = httpx2.Client(transport=serving.witness.transport())
    return openai.OpenAI(
        base_url=f"{serving.root}/v1",
        api_key=key or serving.keys["first"],
        max_retries=retries,
        timeout=60,
        http_client=transport,
    )


@pytest.fixture
def asynchronously(serving: Serving) -> AsyncCalls:
    """Runs a function with OpenAI's asynchronous client, which tries nothing twice."""

    def run(calls: Callable[[openai.AsyncOpenAI], Awaitable[Any]], *, key: str = "first", retries: int = 0) -> Any:
        async def within() -> Any:
            transport = httpx2.AsyncClient(transport=serving.witness.async_transport())
            client = openai.AsyncOpenAI(
                base_url=f"{serving.root}/v1",
                api_key=serving.keys[key],
                max_retries=retries,
                timeout=60,
                http_client=transport,
            )
            async with client:
                return await calls(client)

        return asyncio.run(within())

    return run
