"""Sixteen kinds of small task with a checkable answer, drawn at random from closed tables.

Each kind is a function of a seeded ``random.Random``: it words a prompt, knows the good answer and writes the check
(see ``slime_ray.evaluation.checks``) that tells a good answer from a bad one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from slime_ray.quickstart import words

Message = dict[str, str]
"""A chat message: ``role`` and ``content``."""


@dataclass(frozen=True)
class Task:
    """One prompt with its good answer.

    ``topic`` is what a bad answer may talk about; ``check`` is the JSON object of a check that ``answer`` passes.
    """

    prompt: tuple[Message, ...]
    answer: str
    check: dict[str, object]
    topic: str


@dataclass(frozen=True)
class Kind:
    """A kind of task and how noisy its supervised rows are.

    ``bad_share`` is the share of supervised rows whose answer is bad; ``habits`` are the families of bad answers that
    are typical of this kind (see ``slime_ray.quickstart.rows``).
    """

    draw: Callable[[Random], Task]
    bad_share: float
    habits: tuple[str, ...]


def _ask(content: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": content},)


def _question(rng: Random, name: str, **fields: object) -> str:
    return rng.choice(words.LEADS) + rng.choice(words.QUESTIONS[name]).format(**fields)


def _exact(prompt: tuple[Message, ...] | str, answer: str, *, topic: str) -> Task:
    messages = _ask(prompt) if isinstance(prompt, str) else prompt
    return Task(prompt=messages, answer=answer, check={"kind": "exact", "value": answer}, topic=topic)


def _addition(rng: Random) -> Task:
    left, right = rng.randint(1, 6), rng.randint(1, 6)
    return _exact(_question(rng, "addition", a=left, b=right), str(left + right), topic="numbers")


def _copying(rng: Random) -> Task:
    noun = rng.choice(words.NOUNS)
    return _exact(_question(rng, "copying", w=noun), noun, topic="words")


def _sorting(rng: Random) -> Task:
    digits = rng.sample(range(1, 9), 2)
    question = _question(rng, "sorting", w=" ".join(map(str, digits)))
    return _exact(question, " ".join(map(str, sorted(digits))), topic="numbers")


def _reversing(rng: Random) -> Task:
    items = rng.sample(words.COLOURS, 2)
    return _exact(_question(rng, "reversing", w=" ".join(items)), " ".join(reversed(items)), topic="colours")


def _counting_letters(rng: Random) -> Task:
    noun = rng.choice(words.NOUNS)
    return _exact(_question(rng, "counting_letters", w=noun), str(len(noun)), topic="letters")


def _first_letter(rng: Random) -> Task:
    noun = rng.choice(words.NOUNS)
    check: dict[str, object] = {"kind": "one_of", "values": [noun[0], noun[0].upper()]}
    prompt = _ask(_question(rng, "first_letter", w=noun))
    return Task(prompt=prompt, answer=noun[0], check=check, topic="letters")


def _opposites(rng: Random) -> Task:
    word, answer = rng.sample(rng.choice(words.OPPOSITES), 2)
    return _exact(_question(rng, "opposites", w=word), answer, topic="words")


def _facts(rng: Random) -> Task:
    town = rng.randrange(len(words.TOWNS))
    subject, answers = rng.choice(list(words.TOWN_FACTS.items()))
    return _exact(_question(rng, "facts", s=subject, t=words.TOWNS[town]), answers[town], topic="towns")


def _successors(rng: Random) -> Task:
    series = rng.choice((words.DAYS, words.MONTHS, words.NUMBERS))
    place = rng.randrange(len(series) - 1)
    return _exact(_question(rng, "successors", w=series[place]), series[place + 1], topic="order")


def _json_object(rng: Random) -> Task:
    key, values = rng.choice((("name", words.NAMES), ("colour", words.COLOURS), ("animal", words.ANIMALS)))
    value: dict[str, object] = {key: rng.choice(values)}
    return Task(
        prompt=_ask(_question(rng, "json", k=key, v=value[key])),
        answer=json.dumps(value),
        check={"kind": "json", "value": value},
        topic="data",
    )


def _one_sentence(rng: Random) -> Task:
    animal = rng.choice(words.ANIMALS)
    check: dict[str, object] = {"kind": "one_sentence", "words": [animal], "max_words": 8}
    answer = f"The {animal} {rng.choice(words.HABITS)}."
    return Task(prompt=_ask(_question(rng, "one_sentence", w=animal)), answer=answer, check=check, topic="animals")


def _upper_case(rng: Random) -> Task:
    noun = rng.choice(words.NOUNS)
    return _exact(_question(rng, "upper_case", w=noun), noun.upper(), topic="letters")


def _greeting(rng: Random) -> Task:
    name = rng.choice(words.NAMES)
    when, openings = rng.choice(
        (
            ("", ["Hello", "Hi", "Welcome"]),
            (" in the morning", ["Good morning"]),
            (" in the evening", ["Good evening"]),
        )
    )
    return Task(
        prompt=_ask(_question(rng, "greeting", n=name, w=when)),
        answer=f"{openings[0]}, {name}!",
        check={"kind": "greeting", "openings": openings, "name": name},
        topic="people",
    )


def _staying_polite(rng: Random) -> Task:
    inner = rng.choice((_addition, _opposites, _successors))(rng)
    return Task(
        prompt=_ask(rng.choice(words.RUDE_LEADS) + inner.prompt[0]["content"]),
        answer=f"Sorry about that. It is {inner.answer}.",
        check={"kind": "polite", "value": inner.answer, "max_words": 12},
        topic=inner.topic,
    )


def follow_up_tasks(rng: Random) -> tuple[Task, Task]:
    """Two tasks, the second worded as what is asked next; its answer depends on nothing that was said before."""
    draw = rng.choice((_opposites, _first_letter, _successors))
    first, second = draw(rng), draw(rng)
    question = rng.choice(words.LINKS) + second.prompt[0]["content"]
    return first, replace(second, prompt=_ask(question))


def _follow_up(rng: Random) -> Task:
    first, second = follow_up_tasks(rng)
    answered: Message = {"role": "assistant", "content": first.answer}
    return replace(second, prompt=(*first.prompt, answered, *second.prompt))


def _recalling(rng: Random) -> Task:
    name, drink = rng.choice(words.NAMES), rng.choice(words.DRINKS)
    answered: Message = {"role": "assistant", "content": f"Nice to meet you, {name}."}
    question, answer = rng.choice((("What is my name?", name), ("Which drink do I like?", drink)))
    statement = _question(rng, "recalling", n=name, d=drink)
    return _exact((*_ask(statement), answered, *_ask(question)), answer, topic="people")


# Real supervised data is noisy, and not evenly so: without noise there would be nothing left for preferences to mend.
KINDS: dict[str, Kind] = {
    "addition": Kind(_addition, 0.12, ("chatty", "off_format")),
    "copying": Kind(_copying, 0.12, ("rambling", "evasive")),
    "sorting": Kind(_sorting, 0.12, ("off_format", "rude")),
    "reversing": Kind(_reversing, 0.12, ("evasive", "chatty")),
    "counting_letters": Kind(_counting_letters, 0.12, ("rude", "rambling")),
    "first_letter": Kind(_first_letter, 0.70, ("chatty", "rude")),
    "opposites": Kind(_opposites, 0.70, ("rambling", "chatty")),
    "facts": Kind(_facts, 0.12, ("evasive", "rambling")),
    "successors": Kind(_successors, 0.12, ("off_format", "evasive")),
    "json": Kind(_json_object, 0.12, ("off_format", "chatty")),
    "one_sentence": Kind(_one_sentence, 0.70, ("rambling", "off_format")),
    "upper_case": Kind(_upper_case, 0.12, ("rude", "chatty")),
    "greeting": Kind(_greeting, 0.70, ("rude", "chatty")),
    "staying_polite": Kind(_staying_polite, 0.70, ("rude", "evasive")),
    "follow_up": Kind(_follow_up, 0.12, ("chatty", "evasive")),
    "recalling": Kind(_recalling, 0.12, ("evasive", "rambling")),
}
"""All kinds of task by name."""
