"""The official asynchronous client: many requests at once, too many at once, and those that are given up."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.served import LIMITS, MODEL, Serving
from tests.serving.conftest import AsyncCalls

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 16}
LONG: dict[str, Any] = {"model": MODEL, "max_tokens": LIMITS["max_tokens"], "extra_body": {"ignore_eos": True}}


def messages(number: int) -> list[Any]:
    """A question that no other number has."""
    return [{"role": "user", "content": f"{number}: red river"}]


async def content(client: openai.AsyncOpenAI, number: int) -> str:
    """The answer to one question."""
    answer = await client.chat.completions.create(**GREEDY, messages=messages(number))
    return answer.choices[0].message.content or ""


async def stream_content(client: openai.AsyncOpenAI, number: int) -> str:
    """The same from a stream."""
    stream = await client.chat.completions.create(**GREEDY, messages=messages(number), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_answers_at_once_are_those_one_by_one(asynchronously: AsyncCalls) -> None:
    async def calls(client: openai.AsyncOpenAI) -> None:
        alone = [await content(client, number) for number in range(5)]
        assert len(set(alone)) > 1
        assert await asyncio.gather(*(content(client, number) for number in range(5))) == alone
        assert await asyncio.gather(*(stream_content(client, number) for number in range(5))) == alone

    asynchronously(calls)


def test_models_and_completions(asynchronously: AsyncCalls) -> None:
    async def calls(client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        first, again = await asyncio.gather(*(client.completions.create(**GREEDY, prompt="7: blue") for _ in range(2)))
        assert first.choices[0].text == again.choices[0].text != ""

    asynchronously(calls)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "x"}, openai.NotFoundError),
        ({"n": 99}, openai.BadRequestError),
        ({"seed": {}}, openai.BadRequestError),
    ],
    ids=["model", "n", "seed"],
)
def test_a_wrong_request_raises(
    asynchronously: AsyncCalls, settings: dict[str, Any], expected: type[openai.APIStatusError]
) -> None:
    async def calls(client: openai.AsyncOpenAI) -> None:
        for stream in (False, True):
            with pytest.raises(expected):
                await client.chat.completions.create(**{**GREEDY, "messages": messages(0), **settings}, stream=stream)

    asynchronously(calls)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_that_is_cancelled_frees_its_place(
    asynchronously: AsyncCalls, serving: Serving, *, stream: bool
) -> None:
    async def calls(client: openai.AsyncOpenAI) -> None:
        async def ask() -> None:
            answer: Any = await client.chat.completions.create(**LONG, messages=messages(0), n=4, stream=stream)
            if stream:
                async for _ in answer:
                    await asyncio.sleep(0)

        asked = asyncio.create_task(ask())
        await asyncio.to_thread(serving.wait_in_flight, 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.to_thread(serving.wait_in_flight, 0)

    asynchronously(calls)


def test_a_client_that_tries_again_gets_all_its_answers(asynchronously: AsyncCalls, serving: Serving) -> None:
    """More at once than a key may: some are refused, and the client itself sends those again."""
    before = len(serving.logged())

    async def calls(client: openai.AsyncOpenAI) -> list[str]:
        answers = await asyncio.gather(*(content(client, number) for number in range(14)))
        assert [await content(client, number) for number in range(14)] == answers
        return answers

    asynchronously(calls, key="crowd", retries=10)
    serving.wait_in_flight(0)
    lines = [line for line in serving.logged()[before:] if line["key"] == "crowd"]
    codes = [line["status"] for line in lines]
    assert codes.count(200) == 28
    assert codes.count(429) > 0
    assert {line["code"] for line in lines if line["status"] == 429} == {"rate_limit_exceeded"}
    assert len(codes) == codes.count(200) + codes.count(429)
