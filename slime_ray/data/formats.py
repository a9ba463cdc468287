"""The formats in which preference pairs and demonstrations are published, told apart by their fields.

Every parser gives the same thing: the prompt, the answers, and whether both answers were given to the same prompt.
Plain text is one message: of the user as a prompt, of the assistant as an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slime_ray.data.messages import Message, canonical, conversation, text_message, tool_list
from slime_ray.errors import DataError

EXPECTED = "expected pairs such as prompt, chosen and rejected"

# The speakers of https://github.com/anthropics/hh-rlhf; a turn begins after an empty line.
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Sides:
    """What a row says: a prompt and the answers to it; without ``rejected`` it is a demonstration.

    ``same_prompt`` is false where the row gives each answer a prompt of its own and these differ.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...] | None
    same_prompt: bool = True
    tools: tuple[Any, ...] | None = None


def detect_format(row: Mapping[str, Any], source: str) -> str:
    """The name of the row's format: a key of ``FORMATS``; those of SFT data begin with ``sft_``.

    Raises:
        DataError: unpaired labels, a ranking, texts without a prompt, or fields that no format has.
    """
    fields = row.keys()
    if {"chosen", "rejected"} <= fields:
        return _detect_pair(row, source)
    if {"input", "preferred_output", "non_preferred_output"} <= fields:
        return "openai"
    is_demonstration = "messages" in fields or {"prompt", "completion"} <= fields
    if is_demonstration and row.get("label") in (True, False):
        raise DataError(
            f"{source}: unpaired data (one answer with a label, as for KTO), which has no rejected answer beside a "
            f"chosen one; {EXPECTED}"
        )
    if is_demonstration:
        return "sft_messages" if "messages" in fields else "sft_prompt_completion"
    if any(key in fields for key in ("preference", "ranking", "rank", "ranks", "completions", "responses")):
        raise DataError(f"{source}: a ranking of several answers to one prompt, which is not read; {EXPECTED}")
    shown = ", ".join(sorted(map(str, fields))[:8]) or "none"
    raise DataError(f"{source}: no known format has just these fields: {shown}; {EXPECTED}, or messages for SFT")


def parse(name: str, row: Mapping[str, Any], source: str) -> Sides:
    """What a row of the format ``name`` says.

    Raises:
        DataError: a value is not what the format has there.
    """
    return FORMATS[name](row, source)


def _detect_pair(row: Mapping[str, Any], source: str) -> str:
    chosen, rejected = row["chosen"], row["rejected"]
    if "conversations" in row:
        return "llama_factory"
    if row.get("prompt") is not None:
        repeats_prompt = isinstance(row["prompt"], str) and (_opens_with_prompt(chosen) or _opens_with_prompt(rejected))
        return "ultrafeedback_binarized" if repeats_prompt else "explicit"
    if isinstance(chosen, str) and isinstance(rejected, str):
        if all(_HH_TURN.match(_as_transcript(text)) for text in (chosen, rejected)):
            return "anthropic_hh"
        raise DataError(f"{source}: chosen and rejected are plain texts without a prompt; {EXPECTED}")
    return "implicit"


def _opens_with_prompt(answer: Any) -> bool:
    """Whether an answer is a conversation that has its prompt in it."""
    first = answer[0] if isinstance(answer, (list, tuple)) and answer else None
    return isinstance(first, dict) and first.get("role", first.get("from")) not in ("assistant", "gpt", "function_call")


def _explicit(row: Mapping[str, Any], source: str) -> Sides:
    """TRL's explicit prompt, and pairs whose conversations repeat it, as HuggingFaceH4/ultrafeedback_binarized."""
    prompt = _prompt(row["prompt"], source)
    tools = tool_list(row.get("tools"), source)
    if not (_opens_with_prompt(row["chosen"]) or _opens_with_prompt(row["rejected"])):
        return Sides(prompt, _answer(row["chosen"], source), _answer(row["rejected"], source), tools=tools)
    sides = _implicit(row, source)
    # A text names only the user's message; the conversations may have more, such as a system message.
    texts = [canonical((message,)) for message in sides.prompt]
    repeated = canonical(prompt) in [canonical(sides.prompt), *texts]
    return Sides(sides.prompt, sides.chosen, sides.rejected, sides.same_prompt and repeated, tools)


def _implicit(row: Mapping[str, Any], source: str) -> Sides:
    """Two whole conversations: the last message of each is the answer, what stands before it the prompt."""
    chosen, rejected = conversation(row["chosen"] or (), source), conversation(row["rejected"] or (), source)
    return _divided(chosen, rejected, tool_list(row.get("tools"), source))


def _openai(row: Mapping[str, Any], source: str) -> Sides:
    """OpenAI's preference fine-tuning: input.messages, preferred_output, non_preferred_output."""
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise DataError(f"{source}: input has no messages; expected OpenAI's input.messages beside preferred_output")
    return Sides(
        conversation(given["messages"], source),
        _answer(row["preferred_output"], source),
        _answer(row["non_preferred_output"], source),
        tools=tool_list(given.get("tools"), source),
    )


def _llama_factory(row: Mapping[str, Any], source: str) -> Sides:
    """LLaMA-Factory's ranking data in ShareGPT form: conversations, chosen, rejected; system and tools if any."""
    prompt = conversation(row["conversations"], source)
    if row.get("system"):
        prompt = (text_message("system", row["system"], source), *prompt)
    tools = tool_list(row.get("tools"), source)
    return Sides(prompt, _answer(row["chosen"], source), _answer(row["rejected"], source), tools=tools)


def _anthropic_hh(row: Mapping[str, Any], source: str) -> Sides:
    """Anthropic HH: two transcripts of Human and Assistant turns, whose last turn is the answer."""
    return _divided(_transcript(row["chosen"], source), _transcript(row["rejected"], source), None)


def _messages(row: Mapping[str, Any], source: str) -> Sides:
    """A whole conversation: the last message is the answer."""
    prompt, answer = _last_turn(conversation(row["messages"], source))
    return Sides(prompt, answer, None, tools=tool_list(row.get("tools"), source))


def _prompt_completion(row: Mapping[str, Any], source: str) -> Sides:
    """TRL's prompt and completion, as text or as messages."""
    tools = tool_list(row.get("tools"), source)
    return Sides(_prompt(row["prompt"], source), _answer(row["completion"], source), None, tools=tools)


FORMATS: dict[str, Callable[[Mapping[str, Any], str], Sides]] = {
    "explicit": _explicit,
    "implicit": _implicit,
    "ultrafeedback_binarized": _explicit,
    "openai": _openai,
    "llama_factory": _llama_factory,
    "anthropic_hh": _anthropic_hh,
    "sft_messages": _messages,
    "sft_prompt_completion": _prompt_completion,
}


def _prompt(value: Any, source: str) -> tuple[Message, ...]:
    return (text_message("user", value, source),) if isinstance(value, str) else conversation(value, source)


def _answer(value: Any, source: str) -> tuple[Message, ...]:
    if value is None:
        return ()
    return (text_message("assistant", value, source),) if isinstance(value, str) else conversation(value, source)


def _divided(chosen: tuple[Message, ...], rejected: tuple[Message, ...], tools: tuple[Any, ...] | None) -> Sides:
    prompt, chosen_answer = _last_turn(chosen)
    other, rejected_answer = _last_turn(rejected)
    return Sides(prompt, chosen_answer, rejected_answer, canonical(prompt) == canonical(other), tools)


def _last_turn(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The prompt and the answer; where somebody else has the last word, the answer is empty."""
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1:]
    return messages, ()


def _as_transcript(text: str) -> str:
    return "\n\n" + text.lstrip()


def _transcript(text: str, source: str) -> tuple[Message, ...]:
    parts = _HH_TURN.split(_as_transcript(text))[1:]
    speakers, texts = parts[0::2], parts[1::2]
    pairs = zip(speakers, texts, strict=True)
    return tuple(text_message(_HH_ROLES[speaker], words.strip(), source) for speaker, words in pairs)
