"""Tokenizers made on the spot, with templates shaped like those of known models, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    # A beginning-of-sequence token, today's date by both ways, and trimmed texts.
    "llama": {
        "special": ["<|bos|>", "<|eot|>", "<|start|>", "<|end|>"],
        "bos_token": "<|bos|>",
        "eos_token": "<|eot|>",
        "template": (
            "{{- bos_token }}{{- '<|start|>system<|end|>\\n\\nToday: ' + date_string }}"
            "{{- ' ' + strftime_now('%d %B %Y') + '<|eot|>' }}{% for m in messages %}"
            "{{- '<|start|>' + m.role + '<|end|>\\n\\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
        ),
    },
    # No beginning-of-sequence token, and a line end after the end of a turn.
    "qwen": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "eos_token": "<|endoftext|>",
        "template": (
            "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
            "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
    },
    # No system role.
    "gemma": {
        "special": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "template": (
            "{{ bos_token }}"
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
            "{{ '<start_of_turn>' + role + '\\n' + m.content + '<end_of_turn>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
        ),
    },
    # The end of a turn is the end-of-sequence token, and a generation prompt opens nothing.
    "mistral": {
        "special": ["<s>", "</s>", "[INST]", "[/INST]"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "template": (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
            "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
        ),
    },
}


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """Byte-level BPE: every text is some tokens, and back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran after the cat"] * 4, trainer)
    return tokenizer


@pytest.fixture
def tokenizer_of(trained: Tokenizer) -> Callable[..., PreTrainedTokenizerFast]:
    """A tokenizer of one of the shapes; ``template`` replaces the shape's."""

    def make(shape: str, template: str | None = None) -> PreTrainedTokenizerFast:
        spec = SHAPES[shape]
        copy = Tokenizer.from_str(trained.to_str())
        copy.add_special_tokens(spec["special"])
        names = {key: spec[key] for key in ("bos_token", "eos_token") if key in spec}
        made = PreTrainedTokenizerFast(tokenizer_object=copy, **names)
        made.chat_template = spec["template"] if template is None else template
        return made

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines and give the path."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
