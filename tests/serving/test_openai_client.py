"""The official client on a real endpoint: chats, streams, what shapes them, and what is wrong with a request."""

from __future__ import annotations

import math
import re
import uuid
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from tests.served import CONTEXT, LIMITS, MODEL, PARENT, Serving
from tests.serving.conftest import client_of

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "3: red river stone"}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 24}
DRAWN: dict[str, Any] = {**GREEDY, "temperature": 1.0}


def chat(client: openai.OpenAI, **settings: Any) -> ChatCompletion:
    """An answer to the question of these tests."""
    return client.chat.completions.create(**{**GREEDY, **settings})


def streamed(client: openai.OpenAI, **settings: Any) -> list[ChatCompletionChunk]:
    """The chunks of one."""
    return list(client.chat.completions.create(**{**GREEDY, **settings}, stream=True))


def text(answer: ChatCompletion, index: int = 0) -> str:
    """What an answer says."""
    content = answer.choices[index].message.content
    assert content is not None
    return content


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    """What the chunks of one choice say."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_greedy_answers_are_equal_and_no_drawn_ones(client: openai.OpenAI) -> None:
    first, again = chat(client), chat(client)
    assert text(first) == text(again) != ""
    assert first.id != again.id
    assert first.model == MODEL
    assert text(chat(client, temperature=1.5, seed=1)) != text(first)


def test_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    whole, chunks = chat(client), streamed(client)
    assert joined(chunks) == text(whole)
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}


def test_usage_counts_the_tokens(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body={"return_token_ids": True})
    usage = answer.usage
    assert usage is not None
    assert answer.model_extra is not None
    assert answer.choices[0].model_extra is not None
    assert usage.prompt_tokens == len(answer.model_extra["prompt_token_ids"])
    assert usage.completion_tokens == len(answer.choices[0].model_extra["token_ids"]) > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("asked", [True, False, None], ids=["asked", "refused", "unsaid"])
def test_a_stream_tells_its_usage_where_asked(client: openai.OpenAI, *, asked: bool | None) -> None:
    options = {} if asked is None else {"stream_options": {"include_usage": asked}}
    chunks = streamed(client, **options)
    told = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [chunk for chunk in chunks if not chunk.choices] == ([chunks[-1]] if asked else [])
    assert told == ([chat(client).usage] if asked else [])


def test_usage_can_come_with_every_chunk(client: openai.OpenAI) -> None:
    chunks = streamed(client, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert [chunk.usage for chunk in chunks][-1] == chat(client).usage


def test_several_choices(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, temperature=1.0, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({text(answer, index) for index in range(3)}) > 1
    chunks = streamed(client, n=3, temperature=1.0, seed=5)
    assert [joined(chunks, index) for index in range(3)] == [text(answer, index) for index in range(3)]


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI, *, several: bool) -> None:
    whole = text(chat(client))
    stop = whole[4:7]
    before = whole[: whole.index(stop)]
    answer = chat(client, stop=["never said", stop] if several else stop)
    assert (text(answer), answer.choices[0].finish_reason) == (before, "stop")
    chunks = streamed(client, stop=stop)
    assert joined(chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_gives_the_answer_again(client: openai.OpenAI) -> None:
    by_seed = {seed: text(chat(client, temperature=1.0, seed=seed)) for seed in (1, 2, 3)}
    assert len(set(by_seed.values())) > 1
    assert {seed: text(chat(client, temperature=1.0, seed=seed)) for seed in by_seed} == by_seed


def test_logprobs_are_a_distribution(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=5)
    content = answer.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert answer.usage is not None
    assert len(content.content) == answer.usage.completion_tokens
    for token in content.content:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert 0.0 < sum(map(math.exp, values)) <= 1.0 + 1e-4
        assert token.logprob == values[0], "greedy takes the likeliest"
    spelled = "".join(token.token for token in content.content)
    assert spelled.removesuffix("<|end|>") == text(answer).replace("\ufffd", ""), "what is no text alone is left out"


def test_logprobs_of_a_stream_are_those_of_the_answer(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs
    chunks = streamed(client, logprobs=True, top_logprobs=2)
    parts = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert whole is not None
    # Where tools may be called, vLLM passes over tokens without a text of their own in a stream.
    tokens = [(token.token, token.logprob) for part in parts for token in part.content or [] if token.token]
    expected = [(token.token, token.logprob) for token in whole.content or [] if token.token]
    assert len(expected) > 5
    assert [token for token, _ in tokens] == [token for token, _ in expected]
    assert [value for _, value in tokens] == pytest.approx([value for _, value in expected], abs=1e-4)


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_its_length(client: openai.OpenAI, key: str) -> None:
    answer = chat(client, **{"max_tokens": openai.omit, key: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_an_answer_without_a_length_is_cut_at_the_ceiling(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=openai.omit, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == LIMITS["max_tokens"]


def test_turns_and_system_messages_change_the_answer(client: openai.OpenAI) -> None:
    system: ChatCompletionMessageParam = {"role": "system", "content": "never blue"}
    turns: list[ChatCompletionMessageParam] = [*ASKED, {"role": "assistant", "content": "yes"}, *ASKED]
    asked = {"one": ASKED, "system": [system, *ASKED], "turns": turns}
    answers = {name: chat(client, messages=messages) for name, messages in asked.items()}
    assert len({text(answer) for answer in answers.values()}) == 3
    lengths = {name: cast(Any, answer.usage).prompt_tokens for name, answer in answers.items()}
    assert lengths["one"] < lengths["system"]
    assert lengths["one"] < lengths["turns"]


@pytest.mark.parametrize(
    "said", ["übergröße", "日本語 тест", "👩‍👩‍👧 🦆\u0301", 'a "quoted" \\ \n\t line', "<|end|>", ""]
)
def test_text_arrives_as_it_was_sent(client: openai.OpenAI, said: str) -> None:
    """An echo of the last message shows what the engine was asked."""
    turn: ChatCompletionMessageParam = {"role": "assistant", "content": said}
    last = {"echo": True, "continue_final_message": True, "add_generation_prompt": False}
    answer = chat(client, messages=[*ASKED, turn], max_tokens=1, extra_body=last)
    assert text(answer).startswith(said)


def test_extra_body_reaches_the_engine(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body={"prompt_logprobs": 0, "return_token_ids": True, "min_tokens": 24})
    assert answer.model_extra is not None
    told, ids = answer.model_extra["prompt_logprobs"], answer.model_extra["prompt_token_ids"]
    assert told[0] is None
    assert [next(iter(token)) for token in told[1:]] == [str(token) for token in ids[1:]]
    assert all(value["logprob"] < 0 for token in told[1:] for value in token.values())


def test_models_show_their_lineage(client: openai.OpenAI, serving: Serving) -> None:
    listed = client.models.list().data
    card = client.models.retrieve(MODEL)
    assert [each.to_dict() for each in listed] == [card.to_dict()]
    assert card.id == MODEL
    lineage = cast(Any, card).lineage
    assert lineage["run"].startswith(f"{serving.lineage['name']}@")
    assert lineage["parent"] == serving.lineage["parent"]
    assert lineage["data"] == serving.lineage["data"]
    assert (lineage["certificate"], lineage["evaluations"]) == ("missing", {})
    assert "/" not in card.to_json().replace(MODEL, "").replace(PARENT, "")


# What is asked for -> the client's exception, and what its message says.
_WRONG: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], list[str]]] = {
    "model": ({"model": "tiny/other"}, openai.NotFoundError, ["no such model", MODEL]),
    "no role": ({"messages": [{"content": "red"}]}, openai.BadRequestError, ["messages"]),
    "messages": ({"messages": "red"}, openai.BadRequestError, ["messages"]),
    "no messages": ({"messages": []}, openai.BadRequestError, []),
    "temperature": ({"temperature": -1}, openai.BadRequestError, ["temperature"]),
    "top_p": ({"top_p": 2}, openai.BadRequestError, ["top_p"]),
    "seed": ({"seed": "red"}, openai.BadRequestError, ["seed"]),
    "max_tokens": ({"max_tokens": 257}, openai.BadRequestError, ["max_tokens", "257", "256"]),
    "max_completion_tokens": ({"max_completion_tokens": 999}, openai.BadRequestError, ["999", "256"]),
    "max_tokens 0": ({"max_tokens": 0}, openai.BadRequestError, ["max_tokens"]),
    "n": ({"n": 5, "temperature": 1}, openai.BadRequestError, ["n is 5", "4"]),
    "n 0": ({"n": 0}, openai.BadRequestError, ["n must"]),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, ["logprobs", "21", "20"]),
    "top_logprobs alone": ({"top_logprobs": 2}, openai.BadRequestError, ["logprobs"]),
    "prompt": ({"messages": [{"role": "user", "content": "red " * 600}]}, openai.BadRequestError, [str(CONTEXT)]),
    "schema": ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, ["json_schema"]),
}


@pytest.mark.parametrize("name", _WRONG)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_wrong_request_raises_before_any_answer(client: openai.OpenAI, name: str, *, stream: bool) -> None:
    settings, expected, said = _WRONG[name]
    with pytest.raises(expected) as raised:
        client.chat.completions.create(**{**GREEDY, **settings}, stream=stream)
    assert type(raised.value) is expected
    body = cast(dict[str, Any], raised.value.body)
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert [words for words in said if words not in body["message"]] == []


def test_a_prompt_that_leaves_no_room_is_told_with_both_numbers(client: openai.OpenAI) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "red " * 300}]
    fits = chat(client, messages=asked, max_tokens=1)
    assert fits.usage is not None
    room = CONTEXT - fits.usage.prompt_tokens
    assert 0 < room < LIMITS["max_tokens"]
    assert chat(client, messages=asked, max_tokens=room).usage is not None
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, messages=asked, max_tokens=room + 1)
    numbers = re.findall(r"\d+", raised.value.message)
    assert {str(CONTEXT), str(room + 1)} <= set(numbers)


@pytest.mark.parametrize("key", ["wrong", "sk-slime-" + "x" * 43])
def test_a_wrong_key_raises(serving: Serving, key: str) -> None:
    with client_of(serving, key=key) as stranger, pytest.raises(openai.AuthenticationError) as raised:
        chat(stranger)
    assert raised.value.code == "invalid_api_key"
    assert key not in str(raised.value.body)


def test_a_request_keeps_its_id(client: openai.OpenAI, serving: Serving) -> None:
    known = f"asked-for-{uuid.uuid4().hex}"
    raw = client.chat.completions.with_raw_response.create(**GREEDY, extra_headers={"x-request-id": known})
    assert raw.headers["x-request-id"] == raw.request_id == known
    assert known in raw.parse().id
    assert raw.headers["content-type"] == "application/json"
    line = serving.line_of(known)
    usage = raw.parse().usage
    assert usage is not None
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert (line["key"], line["model"], line["status"], line["outcome"]) == ("first", MODEL, 200, "ok")


def test_a_stream_can_be_read_as_bytes(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**GREEDY, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_a_stream_that_is_left_frees_its_place(client: openai.OpenAI, serving: Serving) -> None:
    settings = {**DRAWN, "max_tokens": LIMITS["max_tokens"], "n": 4}
    with client.chat.completions.create(**settings, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    serving.wait_in_flight(0)
