"""The official client on /v1/completions: prompts as text, as token ids and in batches; echo; log-probabilities."""

from __future__ import annotations

import math
from typing import Any, cast

import openai
import pytest
from openai.types import Completion

from tests.served import LIMITS, MODEL, VOCABULARY

PROMPT = "3: red river"
GREEDY: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}


def complete(client: openai.OpenAI, **settings: Any) -> Completion:
    """What the model goes on with."""
    return client.completions.create(**{**GREEDY, **settings})


def text(answer: Completion) -> str:
    """The first choice."""
    return answer.choices[0].text


def ids(answer: Completion) -> list[int]:
    """The token ids of the prompt."""
    return cast(Any, answer.choices[0]).prompt_token_ids


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(**GREEDY, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text(complete(client)) != ""
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stream_tells_its_usage_where_asked(client: openai.OpenAI) -> None:
    *chunks, last = client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == complete(client).usage
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_token_ids_are_the_text(client: openai.OpenAI) -> None:
    as_text = complete(client, extra_body={"return_token_ids": True})
    as_ids = complete(client, prompt=ids(as_text), extra_body={"return_token_ids": True})
    assert text(as_ids) == text(as_text)
    assert ids(as_ids) == ids(as_text)


@pytest.mark.parametrize("as_ids", [False, True], ids=["texts", "ids"])
def test_a_batch_answers_each_prompt(client: openai.OpenAI, *, as_ids: bool) -> None:
    prompts = [PROMPT, "7: blue", "always seven"]
    alone = [complete(client, prompt=prompt, extra_body={"return_token_ids": True}) for prompt in prompts]
    batch = complete(client, prompt=[ids(answer) for answer in alone] if as_ids else prompts)
    assert [choice.index for choice in batch.choices] == [0, 1, 2]
    assert [choice.text for choice in batch.choices] == [text(answer) for answer in alone]
    assert batch.usage is not None
    assert batch.usage.completion_tokens == 3 * 12


def test_several_choices_of_several_prompts(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=[PROMPT, "7: blue"], n=2, temperature=1.0, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    assert text(complete(client, echo=True)) == PROMPT + text(complete(client))


def test_echo_alone_scores_the_prompt(client: openai.OpenAI) -> None:
    asked = {"echo": True, "max_tokens": 0, "logprobs": 1, "extra_body": {"return_token_ids": True}}
    answer = complete(client, **asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    first, *others = logprobs.token_logprobs or []
    assert first is None
    assert len(others) == len(ids(answer)) - 1
    assert all(value < 0 for value in others)


def test_a_suffix_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix"):
        complete(client, suffix="stone")


def test_logprobs_are_a_distribution(client: openai.OpenAI) -> None:
    logprobs = complete(client, logprobs=3).choices[0].logprobs
    assert logprobs is not None
    tops = logprobs.top_logprobs or []
    assert len(tops) == len(logprobs.token_logprobs or []) == 12
    for top, token, value in zip(tops, logprobs.tokens or [], logprobs.token_logprobs or [], strict=True):
        assert top[token] == value == max(top.values())
        assert sum(map(math.exp, top.values())) <= 1.0 + 1e-4


def test_all_tokens_of_the_vocabulary_add_up_to_one(client: openai.OpenAI) -> None:
    """They are asked for by their ids, of which one request takes 128."""
    values: dict[str, float] = {}
    for first in range(0, VOCABULARY, 100):
        ids = list(range(first, min(first + 100, VOCABULARY)))
        named = {"logprob_token_ids": ids, "return_tokens_as_token_ids": True}
        logprobs = complete(client, max_tokens=1, logprobs=1, extra_body=named).choices[0].logprobs
        assert logprobs is not None
        values |= (logprobs.top_logprobs or [])[0]
    assert len(values) == VOCABULARY
    assert sum(map(math.exp, values.values())) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("stop", ["stop strings", "token"])
def test_an_answer_ends_at_a_stop(client: openai.OpenAI, stop: str) -> None:
    whole = complete(client, extra_body={"return_token_ids": True})
    tokens = cast(Any, whole.choices[0]).token_ids
    if stop == "token":
        answer = complete(client, extra_body={"stop_token_ids": [tokens[5]]})
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens.index(tokens[5]) + 1
    else:
        part = text(whole)[3:6]
        answer = complete(client, stop=part)
        assert text(answer) == text(whole)[: text(whole).index(part)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_chooses_the_token(client: openai.OpenAI) -> None:
    chosen = cast(Any, complete(client, extra_body={"return_token_ids": True}).choices[0]).token_ids[0]
    other = (chosen + 1) % 300 + 20
    answer = complete(client, logit_bias={str(other): 100}, extra_body={"return_token_ids": True})
    assert set(cast(Any, answer.choices[0]).token_ids) == {other}


# What is asked for -> what the message says.
_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "max_tokens": ({"max_tokens": LIMITS["max_tokens"] + 1}, ["257", "256"]),
    "n": ({"n": 5, "temperature": 1}, ["n is 5", "4"]),
    "prompts": ({"prompt": [PROMPT] * 5}, ["n times the prompts", "5", "4"]),
    "logprobs": ({"logprobs": 21}, ["21", "20"]),
    "no prompt": ({"prompt": ""}, []),
    "prompt of objects": ({"prompt": [{}]}, ["prompt"]),
    "negative id": ({"prompt": [-1]}, ["prompt"]),
    "unknown id": ({"prompt": [100000]}, ["100000"]),
    "long": ({"prompt": [20] * 400}, ["384", "400"]),
    "embeddings": ({"extra_body": {"prompt_embeds": "AAAA"}}, []),
}


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_request_is_refused(client: openai.OpenAI, name: str) -> None:
    settings, said = _WRONG[name]
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, **settings)
    assert [words for words in said if words not in raised.value.message] == []
