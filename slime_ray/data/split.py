"""Disjoint parts of one data set, by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from slime_ray.config.data import SplitConfig
from slime_ray.data.messages import Message, canonical

Part = Literal["sft", "preference", "heldout"]


def prompt_key(prompt: Sequence[Message]) -> str:
    """Equal for prompts that differ only in white space around a message's text; 64 hex digits."""
    return hashlib.sha256(canonical(prompt).encode()).hexdigest()


def part_of(prompt: Sequence[Message], split: SplitConfig) -> Part:
    """The part into which a prompt falls: a function of its text and the seed, not of the rows around it."""
    digest = hashlib.sha256(f"{split.seed}:{prompt_key(prompt)}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < split.sft:
        return "sft"
    # Compared with the sum: 0.33 + 0.67 is 1 in floating point, and then no prompt is left over.
    return "preference" if position < split.sft + split.preference else "heldout"
