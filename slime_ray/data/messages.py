"""A message of a conversation, in the one form that everything after the file formats sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slime_ray.errors import DataError

Message = dict[str, Any]
"""``role`` and ``content`` (text), and what a template may need: tool_calls, tool_call_id, name, reasoning_content."""

# Left: OpenAI's roles and those of ShareGPT, which LLaMA-Factory uses. Right: what chat templates know.
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")


def conversation(value: Any, source: str) -> tuple[Message, ...]:
    """A list of messages, or a single one, as a tuple of normalised messages.

    Raises:
        DataError: something in it is no message.
    """
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, (list, tuple)):
        raise DataError(f"{source}: {_shown(value)} is no conversation; expected a list of messages")
    return tuple(_message(message, source) for message in messages)


def text_message(role: str, content: str, source: str) -> Message:
    """A message of plain text."""
    return {"role": role, "content": _text(content, source)}


def tool_list(value: Any, source: str) -> tuple[Any, ...] | None:
    """Tool descriptions: a list, or the same as a JSON text; None where there are none.

    Raises:
        DataError: it is neither.
    """
    tools = _parsed(value)
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)):
        raise DataError(f"{source}: tools = {_shown(value)}; expected a list of tools or a JSON text of one")
    return tuple(tools)


def is_blank(messages: Sequence[Message]) -> bool:
    """Whether there is nothing to say in it: no text but white space, and no tool call."""
    return not any(message["content"].strip() or message.get("tool_calls") for message in messages)


def canonical(messages: Sequence[Message]) -> str:
    """A text that is equal for conversations that differ only in white space around a message's text."""
    return json.dumps(
        [{**message, "content": message["content"].strip()} for message in messages],
        ensure_ascii=False,
        sort_keys=True,
        default=str,
    )


def _message(value: Any, source: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{source}: {_shown(value)} is no message; expected an object with role and content")
    name = value.get("role", value.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{source}: a message has the role {_shown(name)}; expected one of {', '.join(_ROLES)}")
    content = value.get("content", value.get("value"))
    message = {key: value[key] for key in _KEPT if value.get(key)}
    if name == "function_call":
        message["tool_calls"] = _parsed(content)
        content = None
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], source)
    if content is None and role == "assistant":
        content = ""
    return {"role": role, "content": _joined(content, role, source), **message}


def _joined(content: Any, role: str, source: str) -> str:
    """Text, or OpenAI's list of text parts as one text."""
    if isinstance(content, str):
        return _text(content, source)
    if not isinstance(content, (list, tuple)):
        raise DataError(f"{source}: the content of a {role} message is {_shown(content)}; expected text")
    parts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise DataError(f"{source}: a part of a {role} message is {_shown(part)}; expected text parts only")
        parts.append(_text(part["text"], source))
    return "".join(parts)


def _text(text: str, source: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer takes
        half = text[error.start].encode("unicode_escape").decode()
        raise DataError(f"{source}: character {error.start + 1} of a text is half a surrogate pair ({half})") from None
    return text


def _tool_calls(value: Any, source: str) -> list[Any]:
    """OpenAI's form with the arguments as an object, which is what chat templates print."""
    calls = []
    for call in value if isinstance(value, (list, tuple)) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or "name" not in function:
            raise DataError(f"{source}: {_shown(call)} is no tool call; expected a name and arguments")
        function = {**function, "arguments": _parsed(function.get("arguments") or {})}
        identity = {"id": call["id"]} if call is not function and call.get("id") else {}
        calls.append({"type": "function", **identity, "function": function})
    return calls


def _parsed(value: Any) -> Any:
    """What a JSON text says; anything else, and a text that is no JSON, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
