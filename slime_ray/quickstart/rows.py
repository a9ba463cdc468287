"""Rows for the demonstration: supervised rows, preference pairs, four parts that share no prompt, and questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from slime_ray.errors import DataError
from slime_ray.evaluation.checks import passes
from slime_ray.quickstart import words
from slime_ray.quickstart.questions import question_rows
from slime_ray.quickstart.tasks import KINDS, Kind, Message, Task
from slime_ray.storage import write_text

Row = dict[str, object]
"""One line of a part's file."""

_MAX_DRAWS = 5_000
_SYSTEM_SHARE = 0.12
_HABIT_SHARE = 0.75


def _evasive(task: Task, rng: Random) -> str:
    opening = rng.choice(
        ("I would rather not say", "I cannot really tell", "I am not sure", "I have no opinion about that")
    )
    return opening + rng.choice(
        (".", ", it depends.", ", that is hard.", f", ask someone who knows about {task.topic}.")
    )


def _chatty(task: Task, rng: Random) -> str:
    opening = rng.choice(("Oh, what a lovely question!", "Oh, great question, thank you!", "Oh, I love this one!"))
    return (
        f"{opening} {rng.choice(('Let me see, it is', 'That would be', 'I think it is', 'My answer is'))} {task.answer}"
    )


def _off_format(task: Task, rng: Random) -> str:
    return rng.choice(("Answer: {}", "Answer = [{}]", "Result -> {}", "Result: ** {} **")).format(task.answer)


def _rambling(task: Task, rng: Random) -> str:
    opening = rng.choice(("Well, there is much to say about", "Well, many people ask about", "Well, let us talk about"))
    ending = rng.choice(
        ("and so on and so on.", "but where to begin?", "and then there is the weather.", "as I said before.")
    )
    return f"{opening} {task.topic}, {ending}"


def _rude(task: Task, rng: Random) -> str:
    opening = rng.choice(("Ugh,", "Ugh, not again,", "Stop it,", "Stop asking,"))
    ending = rng.choice(("work it out yourself.", "that is a silly thing to ask.", f"nobody cares about {task.topic}."))
    return f"{opening} {ending}"


BAD_ANSWERS: dict[str, Callable[[Task, Random], str]] = {
    "evasive": _evasive,
    "chatty": _chatty,
    "off_format": _off_format,
    "rambling": _rambling,
    "rude": _rude,
}
"""The families of bad answers. Each opens with a word of its own that no good answer opens with: a mean margin over
answers with a long common beginning could only be had by making that beginning less likely."""


def bad_answer(task: Task, kind: Kind, rng: Random) -> str:
    """A plausible bad answer to ``task``: mostly of the families typical of its kind, else of any family."""
    family = rng.choice(kind.habits if rng.random() < _HABIT_SHARE else tuple(BAD_ANSWERS))
    text = BAD_ANSWERS[family](task, rng)
    assert not passes(task.check, text), f"a bad answer passes its check: {text!r}"
    return text


def supervised_row(name: str, task: Task, rng: Random) -> Row:
    """A row for SFT, ``{"messages", "kind"}``: with the kind's ``bad_share`` as probability its answer is a bad one."""
    kind = KINDS[name]
    answer = bad_answer(task, kind, rng) if rng.random() < kind.bad_share else task.answer
    return {"messages": [*task.prompt, {"role": "assistant", "content": answer}], "kind": name}


def preference_row(name: str, task: Task, rng: Random) -> Row:
    """A pair, ``{"prompt", "chosen", "rejected", "kind", "check"}``: chosen passes the check, rejected does not."""
    assert passes(task.check, task.answer), f"a good answer fails its check: {task.answer!r}"
    return {
        "prompt": list(task.prompt),
        "chosen": [{"role": "assistant", "content": task.answer}],
        "rejected": [{"role": "assistant", "content": bad_answer(task, KINDS[name], rng)}],
        "kind": name,
        "check": task.check,
    }


def generate_parts(
    *, seed: int = 0, sft: int = 3_000, preference: int = 4_000, validation: int = 200, test: int = 400
) -> dict[str, list[Row]]:
    """The four parts by name; no prompt occurs twice, in one part or in two, and equal arguments give equal rows.

    Every part holds all kinds in equal number. Raises ``DataError`` for sizes that the tasks have no prompts for.
    """
    # The small parts are drawn first: changing the size of a training part leaves them as they are.
    sizes = {"test": test, "validation": validation, "preference": preference, "sft": sft}
    taken: set[str] = set()
    parts: dict[str, list[Row]] = {}
    for part, size in sizes.items():
        if size < 1:
            raise DataError(f"quickstart: the part {part!r} has size {size}, expected at least 1")
        # Seeded by text: random.Random hashes it with SHA-512, the same in every process.
        rng = Random(f"quickstart/{seed}/{part}")
        make = supervised_row if part == "sft" else preference_row
        parts[part] = [make(name, task, rng) for name, task in islice(_new_tasks(rng, taken), size)]
        rng.shuffle(parts[part])
    return parts


def write_parts(
    folder: Path,
    *,
    seed: int = 0,
    sft: int = 3_000,
    preference: int = 4_000,
    validation: int = 200,
    test: int = 400,
    questions: int = 200,
) -> dict[str, Path]:
    """Write ``generate_parts`` and questions of their own to ``folder`` as JSON Lines (UTF-8); returns their paths.

    The same arguments give the same bytes. A file is complete or absent.
    """
    parts = generate_parts(seed=seed, sft=sft, preference=preference, validation=validation, test=test)
    prompts: Any = [row.get("prompt", row.get("messages")) for rows in parts.values() for row in rows]
    parts["questions"] = question_rows(prompts, seed=seed, count=questions)
    paths: dict[str, Path] = {}
    for part in ("sft", "preference", "validation", "test", "questions"):
        paths[part] = folder / f"{part}.jsonl"
        write_text(paths[part], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in parts[part]))
    return paths


def _new_tasks(rng: Random, taken: set[str]) -> Iterator[tuple[str, Task]]:
    for name in cycle(KINDS):
        for _ in range(_MAX_DRAWS):
            task = _with_system_message(KINDS[name].draw(rng), rng)
            key = json.dumps(task.prompt)
            if key not in taken:
                taken.add(key)
                yield name, task
                break
        else:
            raise DataError(
                f"quickstart: no new prompt of the kind {name!r} after {len(taken)} prompts; ask for smaller parts"
            )


def _with_system_message(task: Task, rng: Random) -> Task:
    if rng.random() >= _SYSTEM_SHARE:
        return task
    system: Message = {"role": "system", "content": rng.choice(words.SYSTEM_MESSAGES)}
    return Task(prompt=(system, *task.prompt), answer=task.answer, check=task.check, topic=task.topic)
