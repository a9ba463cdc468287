"""Held-out prompts of the demonstration as a question file in MT-Bench's form, for models behind an endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from random import Random

from slime_ray.errors import DataError
from slime_ray.quickstart.tasks import KINDS, Message, Task, follow_up_tasks

_MAX_DRAWS = 5_000

# In MT-Bench's form a second turn is asked after the model's own first answer. Of the two kinds with two turns only
# "follow_up" can be: both of its turns are tasks, and its second answer is right whatever was said before. The first
# turn of "recalling" is a statement to which no answer can be checked, so "follow_up" has its place too: two turns are
# as frequent here as in the other parts.
CATEGORIES = tuple("follow_up" if name == "recalling" else name for name in KINDS)
"""The kinds that questions are drawn from, in turn."""


def question_rows(prompts: Iterable[Sequence[Message]], *, seed: int, count: int) -> list[dict[str, object]]:
    """Questions {question_id, category, turns, reference, checks, required_temperature}, greedy, no system messages.

    No turn is what one of ``prompts`` asks, whatever system message stands before it there, and none occurs twice.
    Equal arguments give equal rows.

    Args:
        prompts: of the other parts.
        seed: of the draws.
        count: how many questions.

    Raises:
        DataError: the tasks have no prompts for so many.
    """
    if count < 1:
        raise DataError(f"quickstart: {count} questions, expected at least 1")
    rng, taken = Random(f"quickstart/{seed}/questions"), {_asked(prompt) for prompt in prompts}
    rows: list[dict[str, object]] = []
    for number, (name, tasks) in enumerate(islice(_new_tasks(rng, taken), count), start=1):
        turns = {
            "turns": [task.prompt[-1]["content"] for task in tasks],
            "reference": [task.answer for task in tasks],
            "checks": [task.check for task in tasks],
        }
        rows.append({"question_id": number, "category": name, **turns, "required_temperature": 0.0})
    return rows


def _new_tasks(rng: Random, taken: set[tuple[str, ...]]) -> Iterator[tuple[str, tuple[Task, ...]]]:
    """Tasks of each category in turn, a task a turn, that ask nothing that is taken."""
    for name in cycle(CATEGORIES):
        for _ in range(_MAX_DRAWS):
            tasks = follow_up_tasks(rng) if name == "follow_up" else (KINDS[name].draw(rng),)
            texts = tuple(task.prompt[-1]["content"] for task in tasks)
            # The first turn is asked alone too, before the second.
            asked = {texts[:turn] for turn in range(1, len(texts) + 1)}
            if asked.isdisjoint(taken):
                taken |= asked
                yield name, tasks
                break
        else:
            raise DataError(f"quickstart: no new question of the kind {name!r}; ask for smaller parts")


def _asked(prompt: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(message["content"] for message in prompt if message["role"] == "user")
