"""The split is by prompt: disjoint, stable, and of the sizes that were asked for."""

from __future__ import annotations

from collections import Counter

from slime_ray.config.data import SplitConfig
from slime_ray.data.split import part_of, prompt_key

# Noted once: under another rule, rows that one run was trained on would be held out in the next.
SFT_OF_FORTY = [7, 8, 13, 14, 15, 20, 22, 24, 28, 36]


def prompt(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {number}"}]


def test_parts_have_their_share() -> None:
    counts = Counter(part_of(prompt(number), SplitConfig()) for number in range(6000))
    assert abs(counts["sft"] / 6000 - 0.33) < 0.02
    assert abs(counts["preference"] / 6000 - 0.66) < 0.02
    assert abs(counts["heldout"] / 6000 - 0.01) < 0.005


def test_a_part_depends_on_the_stripped_prompt_and_the_seed_alone() -> None:
    assert [n for n in range(40) if part_of(prompt(n), SplitConfig()) == "sft"] == SFT_OF_FORTY
    padded = [{"role": "user", "content": " question 3\n"}]
    assert prompt_key(padded) == prompt_key(prompt(3)) != prompt_key(prompt(4))
    padded_too = [[{"role": "user", "content": f"\tquestion {n} "}] for n in range(40)]
    assert [n for n in range(40) if part_of(padded_too[n], SplitConfig()) == "sft"] == SFT_OF_FORTY
    other = [part_of(prompt(number), SplitConfig(seed=1)) for number in range(200)]
    assert other != [part_of(prompt(number), SplitConfig()) for number in range(200)]


def test_extreme_shares() -> None:
    prompts = [prompt(number) for number in range(300)]
    assert {part_of(p, SplitConfig(sft=0, preference=1)) for p in prompts} == {"preference"}
    assert {part_of(p, SplitConfig(sft=1, preference=0)) for p in prompts} == {"sft"}
    assert {part_of(p, SplitConfig(sft=0, preference=0)) for p in prompts} == {"heldout"}
