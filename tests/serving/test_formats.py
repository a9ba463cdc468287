"""The official client where an answer has a form: JSON, JSON of a schema, calls of tools."""

from __future__ import annotations

import json
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.served import MODEL

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "windows": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["city", "windows"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def assert_place(written: str | None) -> None:
    """Look whether a text is JSON of the schema."""
    place = json.loads(written or "")
    assert place.keys() == {"city", "windows"}
    assert place["city"] in ("Oslo", "Rome")
    assert [type(window) for window in place["windows"]] == [bool, bool]


def chat(client: openai.OpenAI, **settings: Any) -> ChatCompletion:
    """A drawn answer, which no form has by chance."""
    known = {"model": MODEL, "messages": [{"role": "user", "content": "7: blue window"}], "seed": 1, "max_tokens": 100}
    return cast(Any, client.chat.completions.create)(**{**known, **settings})


def bias_to(client: openai.OpenAI, *tokens: str) -> dict[str, int]:
    """A bias to tokens that end a form, more to later ones: at random an answer would hardly do so."""
    asked = {"max_tokens": 1, "extra_body": {"return_token_ids": True}}
    answers = [client.completions.create(model=MODEL, prompt=token, **asked) for token in tokens]
    ids = [cast(Any, answer.choices[0]).prompt_token_ids[-1] for answer in answers]
    return {str(token): 20 * number for number, token in enumerate(ids, start=1)}


def test_json_objects_parse(client: openai.OpenAI) -> None:
    answer = chat(client, response_format={"type": "json_object"}, logit_bias=bias_to(client, "}", "<|end|>"))
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_json_has_its_schema(client: openai.OpenAI, seed: int, *, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer: Any = chat(client, response_format=form, seed=seed, stream=stream)
    if stream:
        written = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        written = answer.choices[0].message.content
    assert_place(written)


def test_a_choice_and_a_pattern_hold(client: openai.OpenAI) -> None:
    """vLLM's own forms, beside OpenAI's."""
    chosen = chat(client, extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    assert chosen.choices[0].message.content in ("red", "blue")
    matched = chat(client, extra_body={"structured_outputs": {"regex": "[0-9]{3}-[a-c]"}})
    content = matched.choices[0].message.content or ""
    assert content[:3].isdigit()
    assert content[3:] in ("-a", "-b", "-c")


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    answer = chat(client, tools=[WEATHER, CLOCK], tool_choice={"type": "function", "function": {"name": "weather"}})
    (call,) = cast(Any, answer.choices[0].message.tool_calls)
    assert (call.type, call.function.name) == ("function", "weather")
    assert_place(call.function.arguments)


def test_some_tool_is_called_where_one_is_required(client: openai.OpenAI) -> None:
    bias = bias_to(client, "]", "<|end|>")
    answer = chat(client, tools=[WEATHER], tool_choice="required", logit_bias=bias)
    (call,) = cast(Any, answer.choices[0].message.tool_calls)
    assert call.function.name == "weather"
    assert_place(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_tools_are_shown_to_the_model_and_left_to_it(client: openai.OpenAI) -> None:
    bare = chat(client, extra_body={"return_token_ids": True})
    shown = chat(client, tools=[WEATHER], tool_choice="auto", extra_body={"return_token_ids": True})
    assert len(cast(Any, shown).prompt_token_ids) > len(cast(Any, bare).prompt_token_ids)
    assert not shown.choices[0].message.tool_calls
    assert shown.choices[0].message.content


def test_a_conversation_goes_on_after_a_call(client: openai.OpenAI) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "when"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "seven"},
    ]
    assert chat(client, messages=turns, tools=[CLOCK]).choices[0].message.content


@pytest.mark.parametrize(
    "settings",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "red"}}}},
        {"response_format": {"type": "yaml"}},
        {"extra_body": {"structured_outputs": {"regex": "("}}},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
    ],
    ids=["schema", "format", "pattern", "name", "function", "none"],
)
def test_a_form_that_is_none_is_refused(client: openai.OpenAI, settings: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        chat(client, **settings)
    assert raised.value.type == "invalid_request_error"
