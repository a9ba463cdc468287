"""A check accepts the answer and nothing but the answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from slime_ray.errors import DataError
from slime_ray.evaluation.checks import OneOfCheck, parse_check, passes

EXACT = {"kind": "exact", "value": "42"}
ONE_OF = {"kind": "one_of", "values": ["h", "H"]}
JSON = {"kind": "json", "value": {"name": "Mara", "age": 7}}
SENTENCE = {"kind": "one_sentence", "words": ["fox"], "max_words": 8}
GREETING = {"kind": "greeting", "openings": ["Hello", "Hi"], "name": "Mara"}
POLITE = {"kind": "polite", "value": "cold", "max_words": 12}


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (EXACT, "42"),
        (EXACT, " 42\n"),
        (ONE_OF, "h"),
        (ONE_OF, "H"),
        (JSON, '{"name": "Mara", "age": 7}'),
        (JSON, '{ "age":7,\n "name":"Mara" }\n'),
        (SENTENCE, "The fox sleeps in the sun."),
        (SENTENCE, "A fox, I'm told, can swim!"),
        (SENTENCE, "Fox tails are red."),
        (GREETING, "Hello, Mara!"),
        (GREETING, "Hi Mara."),
        (POLITE, "Sorry about that. It is cold."),
        (POLITE, "Thank you for your patience: Cold."),
    ],
)
def test_the_answer_passes(check: dict[str, object], answer: str) -> None:
    assert passes(check, answer)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (EXACT, ""),
        (EXACT, "421"),
        (EXACT, "42."),
        (EXACT, "Answer: 42"),
        (EXACT, "Oh, great question! It is 42"),
        (EXACT, "42 42"),
        (ONE_OF, "hat"),
        (ONE_OF, "hH"),
        (JSON, "name is Mara, age is 7"),
        (JSON, 'Here you are: {"name": "Mara", "age": 7}'),
        (JSON, '{"name": "Mara", "age": 7} Done.'),
        (JSON, '{"name": "Mara", "age": "7"}'),
        (JSON, '{"name": "Mara", "age": 7.0}'),
        (JSON, '{"name": "Mara", "age": 8, "age": 7}'),
        (JSON, '{"name": "Mara", "age": 7, "more": null}'),
        (JSON, '{"name": "Mara", "age": NaN}'),
        (JSON, "[" * 100_000),
        (SENTENCE, "the fox sleeps."),
        (SENTENCE, "The fox sleeps"),
        (SENTENCE, "The fox sleeps. It is warm."),
        (SENTENCE, "The foxes sleep."),
        (SENTENCE, "Well, the fox sleeps."),
        (SENTENCE, "Sure! The fox sleeps."),
        (SENTENCE, "Answer: The fox sleeps."),
        (SENTENCE, "The fox sleeps and sleeps and sleeps and sleeps."),
        (GREETING, "Hello!"),
        (GREETING, "Hello, Maran!"),
        (GREETING, "Hello, Mara! What do you want?"),
        (GREETING, "Go away, Mara!"),
        (GREETING, "Oh, Hello, Mara!"),
        (POLITE, "cold"),
        (POLITE, "It is cold."),
        (POLITE, "Sorry about that."),
        (POLITE, "Sorry about that. It is colder."),
        (POLITE, "Sorry, I would rather not say whether it is cold."),
        (POLITE, "Sorry, you idiot, it is cold."),
        (POLITE, "Sorrystuff, it is cold."),
        (POLITE, "Sorry about that, there are many ways to look at what people call cold."),
    ],
)
def test_anything_else_fails(check: dict[str, object], answer: str) -> None:
    assert not passes(check, answer)


def test_true_is_not_one() -> None:
    assert not passes({"kind": "json", "value": {"a": 1}}, '{"a": true}')


def test_a_parsed_check_serves_as_well() -> None:
    check = parse_check(ONE_OF)
    assert isinstance(check, OneOfCheck)
    assert passes(check, "h")
    assert not passes(check, "x")


@pytest.mark.parametrize(
    ("check", "at_fault"),
    [
        ({}, "kind"),
        ({"kind": "regex", "value": ".*"}, "regex"),
        ({"kind": "exact"}, "value"),
        ({"kind": "exact", "value": ""}, "value"),
        ({"kind": "exact", "value": 42}, "value"),
        ({"kind": "exact", "value": "42", "strict": False}, "strict"),
        ({"kind": "one_of", "values": []}, "values"),
        ({"kind": "one_sentence", "words": ["fox"], "max_words": 0}, "max_words"),
        ({"kind": "one_sentence", "words": ["fox"], "max_words": "8"}, "max_words"),
    ],
)
def test_a_malformed_check_is_refused_by_name(check: dict[str, object], at_fault: str) -> None:
    with pytest.raises(DataError, match=at_fault):
        passes(check, "42")


def test_checks_load_neither_torch_nor_ray() -> None:
    code = "import sys, slime_ray.evaluation.checks; sys.exit(any(m in sys.modules for m in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
