"""Requests at random, of the real form and bent: nothing is answered with a fault of ours, and the engine lives on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.served import MODEL, Serving

AT_ONCE = 5  # one less than a key may: a place is free only a moment after its answer has come
ROUNDS = 410
REQUESTS = AT_ONCE * ROUNDS  # at least 2,000
# Beside 2xx and 4xx: the engine was lost or hangs. Neither may happen here but for a request that takes too long.
_CODES_5XX = {"request_timeout"}

_words = st.text(max_size=12) | st.sampled_from(
    ["red", "<|end|>", "{{ x }}", "\ufffd\u202e", "🦆", " " * 40, "a" * 300]
)
_numbers = (
    st.integers(-3, 25)
    | st.sampled_from([0.5, 1.5, -1.0, 1e-12, 1e99, 2**31, -(2**31), 2**63 - 1, -(2**63), 2**63, 2**70, 10**40])
    | st.floats(allow_nan=False, allow_infinity=False)
)
_scalars = st.none() | st.booleans() | _numbers | _words
junk = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["type", "name", "x", ""]), inner),
    max_leaves=6,
)
_small = st.integers(0, 4)
_lengths = st.sampled_from([-1, 0, 1, 3, 8, 257])
_ids = st.lists(st.integers(0, 399), min_size=1, max_size=6)
_schema = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        {"enum": ["red", 1, None]},
        {"type": "string", "pattern": "^[a-c]{2,5}$"},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}},
        {"$ref": "#/missing"},
        {"type": "string", "pattern": "("},
        {"type": "nothing"},
        {},
        True,
    ]
)
_part = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "input_audio", "file", "x"])}) | st.builds(
    lambda text: {"type": "text", "text": text}, _words
)
_call = st.fixed_dictionaries(
    {"id": _words, "type": st.just("function")},
    optional={
        "function": st.fixed_dictionaries({"name": _words, "arguments": st.sampled_from(["{}", "{", ""]) | junk})
    },
)
_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]) | _words,
        "content": _words | st.none() | st.lists(_part, max_size=3),
    },
    optional={
        "tool_calls": st.lists(_call, max_size=2) | junk,
        "name": _words,
        "tool_call_id": _words,
        "reasoning_content": _words,
        "refusal": _words,
        "weight": _small,
    },
)
_tool = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["weather", "a b", ""])},
            optional={"parameters": _schema | junk, "description": _words, "strict": st.booleans()},
        ),
    }
)
_form = st.one_of(
    st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "grammar"}]),
    st.builds(lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, _schema | junk),
    st.builds(lambda value: {"type": "structural_tag", "format": value, "structures": [], "triggers": []}, junk),
)
_constraint = st.one_of(
    st.builds(lambda value: {"json": value}, _schema),
    st.builds(lambda value: {"regex": value}, st.sampled_from(["[a-c]{2}", "(", "(?=a)b", "", "a*"])),
    st.builds(lambda value: {"choice": value}, st.lists(_words, max_size=3)),
    st.builds(lambda value: {"grammar": value}, st.sampled_from(['root ::= "a"', "root ::= root", "", "?"])),
    st.builds(lambda value: {"structural_tag": value}, st.sampled_from(["{}", "", "x"])),
    junk,
)
# What a request of both kinds may have, as it is meant.
_COMMON: dict[str, st.SearchStrategy[Any]] = {
    "frequency_penalty": st.floats(-3, 3),
    "presence_penalty": st.floats(-3, 3),
    "repetition_penalty": st.floats(0, 3),
    "temperature": st.floats(0, 3),
    "top_p": st.floats(0, 1.2),
    "top_k": st.integers(-2, 500),
    "min_p": st.floats(0, 1.2),
    "seed": st.integers(-(2**64), 2**64),
    "n": st.integers(0, 5),
    "stop": _words | st.lists(_words, max_size=5),
    "stop_token_ids": _ids,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": junk}),
    "logit_bias": st.dictionaries(
        st.sampled_from(["3", "399", "400", "-1", "x", ""]), st.floats(-200, 200), max_size=3
    ),
    "min_tokens": _small,
    "max_tokens": _lengths,
    "ignore_eos": st.booleans(),
    "echo": st.booleans(),
    "best_of": _small,
    "use_beam_search": st.booleans(),
    "length_penalty": st.floats(-2, 2),
    "prompt_logprobs": st.integers(-2, 21),
    "logprob_token_ids": _ids,
    "allowed_token_ids": _ids | st.just([]),
    "bad_words": st.lists(_words, max_size=3),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "truncate_prompt_tokens": st.integers(-2, 400),
    "truncation_side": st.sampled_from(["left", "right", "up"]),
    "add_special_tokens": st.booleans(),
    "response_format": _form,
    "structured_outputs": _constraint,
    "priority": st.integers(-2, 2),
    "request_id": _words,
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "cache_salt": _words,
    "kv_transfer_params": st.dictionaries(_words, junk, max_size=2),
    "vllm_xargs": st.dictionaries(_words, _scalars, max_size=2),
    "repetition_detection": st.fixed_dictionaries({"max_pattern_size": _small, "min_count": _small}),
    "thinking_token_budget": st.integers(-2, 5),
    "stream_interval": st.integers(-1, 5),
    "user": _words,
    "model": st.sampled_from([MODEL, "", "other", None]),
    "unheard_of": junk,
}
_CHAT: dict[str, st.SearchStrategy[Any]] = {
    **_COMMON,
    "messages": st.lists(_message, max_size=4),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-2, 21),
    "max_completion_tokens": _lengths,
    "tools": st.lists(_tool, max_size=2),
    "tool_choice": st.sampled_from(["none", "auto", "required", "x"])
    | st.builds(lambda name: {"type": "function", "function": {"name": name}}, st.sampled_from(["weather", "other"])),
    "parallel_tool_calls": st.booleans(),
    "reasoning_effort": st.sampled_from(["none", "low", "max", "x"]),
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
    "documents": st.lists(st.dictionaries(_words, _words, max_size=2), max_size=2),
    "chat_template": st.sampled_from(["{{ messages }}", "{% for %}", "{{ x.y.z }}", "", "{{ raise_exception('x') }}"]),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["tools", "messages", "x", "tokenize"]), junk, max_size=2),
    "mm_processor_kwargs": st.dictionaries(_words, junk, max_size=1),
    "functions": junk,
    "modalities": junk,
}
_COMPLETION: dict[str, st.SearchStrategy[Any]] = {
    **_COMMON,
    "prompt": _words
    | st.lists(_words, max_size=3)
    | _ids
    | st.lists(_ids, max_size=3)
    | st.lists(st.integers(-2, 2**40), max_size=5),
    "logprobs": st.integers(-2, 21),
    "suffix": _words,
    "prompt_embeds": _words,
}
_PLAIN = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "red"}]}, _CHAT),
    "/v1/completions": ({"prompt": "red"}, _COMPLETION),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A method, a path and a body: some fields as they are meant, up to two that are not, rarely no JSON at all."""
    path = draw(st.sampled_from(sorted(_PLAIN)))
    plain, fields = _PLAIN[path]
    body: Any = {"model": MODEL, "max_tokens": draw(_small), **plain}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True)):
        body[name] = draw(fields[name])
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True)):
        body[name] = draw(junk)
    if draw(st.integers(0, 9)) == 0:
        body.pop(draw(st.sampled_from(sorted(body))))
    if draw(st.integers(0, 30)) == 0:
        body = draw(junk)
    written = json.dumps(body).encode()
    if draw(st.integers(0, 30)) == 0:
        at = draw(st.integers(0, len(written)))
        written = written[:at] + draw(st.binary(max_size=4)) + written[at + draw(_small) :]
    return ("POST", path, written)


_models = st.tuples(
    st.sampled_from(["GET", "GET", "POST", "DELETE"]),
    st.builds(lambda name: f"/v1/models/{quote(name)}", st.text(st.characters(codec="utf-8"), max_size=9)),
    st.just(b""),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all rounds, so that connections stay."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.timeout(600)
def test_no_request_is_a_fault_of_ours(serving: Serving, runner: asyncio.Runner) -> None:
    seen: Counter[int] = Counter()
    client = httpx2.AsyncClient(
        base_url=serving.root,
        headers={**serving.headers("fuzz"), "content-type": "application/json"},
        transport=serving.witness.async_transport(),
        timeout=60,
    )
    plain = {"model": MODEL, **_PLAIN["/v1/completions"][0], "max_tokens": 8, "temperature": 0}

    async def ask(method: str, path: str, body: bytes) -> None:
        response = await client.request(method, path, content=body or None)
        seen[response.status_code] += 1
        assert_documented(response, f"{method} {path} {body!r}")

    async def all_at_once(batch: list[tuple[str, str, bytes]]) -> None:
        # All to their end, so that none of them runs into the next batch.
        outcomes = await asyncio.gather(*(ask(*each) for each in batch), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def answer() -> str:
        response = await client.post("/v1/completions", json=plain)
        return response.raise_for_status().json()["choices"][0]["text"]

    @settings(
        max_examples=ROUNDS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(st.lists(requests() | requests() | requests() | _models, min_size=AT_ONCE, max_size=AT_ONCE))
    def fuzz(batch: list[tuple[str, str, bytes]]) -> None:
        runner.run(all_at_once(batch))

    before, engine = runner.run(answer()), serving.engine()
    fuzz()
    assert runner.run(answer()) == before
    assert serving.engine() == engine, "the engine was started again"
    runner.run(client.aclose())
    assert seen.total() >= 2000
    assert seen[200] > seen.total() // 20, f"hardly a request was one: {seen}"


def assert_documented(response: httpx2.Response, asked: str) -> None:
    """Look at a response: a status that the documentation has, errors in OpenAI's form, whole events."""
    status = response.status_code
    assert status in (200, 400, 404, 405, 504), f"{status} for {asked}: {response.text}"
    if status != 200:
        assert_error(response.json(), asked)
        assert status < 500 or response.json()["error"]["code"] in _CODES_5XX
    elif response.headers["content-type"].startswith("text/event-stream"):
        *events, done, end = response.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", ""), f"{asked}: {response.text}"
        for event in map(json.loads, (event.removeprefix("data: ") for event in events)):
            assert "error" not in event, f"{asked}: {event}"
    else:
        assert response.json()["object"] in ("chat.completion", "text_completion", "model", "list"), asked


def assert_error(body: dict[str, Any], asked: str) -> None:
    """Look at an error."""
    assert body.keys() == {"error"}, f"{asked}: {body}"
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"] in ("invalid_request_error", "timeout_error"), f"{asked}: {body}"
