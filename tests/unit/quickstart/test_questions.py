"""The demonstration's questions: held out, in MT-Bench's form, and graded as their checks say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slime_ray.errors import DataError
from slime_ray.evaluation.questions import Question, QuestionSet, load_questions
from slime_ray.evaluation.rubric import grade
from slime_ray.quickstart.questions import question_rows
from slime_ray.quickstart.rows import write_parts
from slime_ray.quickstart.tasks import KINDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("data"), seed=0)["questions"].parent


@pytest.fixture(scope="module")
def questions(folder: Path) -> QuestionSet:
    return load_questions(folder / "questions.jsonl")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(row: dict[str, Any]) -> list[str]:
    """What the user says in a row of a part, turn by turn."""
    messages = row["prompt"] if "prompt" in row else row["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def test_there_are_200_greedy_ones_of_all_kinds_but_the_one_whose_first_turn_asks_nothing(
    questions: QuestionSet,
) -> None:
    categories = [question.category for question in questions.questions]
    counts = {name: categories.count(name) for name in KINDS}
    assert sum(counts.values()) == len(categories) == 200
    assert (counts.pop("recalling"), counts.pop("follow_up")) == (0, 24)  # 12 full rounds of 16, and 8 more
    assert set(counts.values()) == {12, 13}
    assert {question.temperature for question in questions.questions} == {0.0}
    assert questions.style == "mt_bench"


def test_the_ones_of_two_turns_are_the_follow_ups(questions: QuestionSet) -> None:
    for question in questions.questions:
        assert len(question.turns) == (2 if question.category == "follow_up" else 1)


def test_nothing_that_is_asked_is_asked_in_another_part(folder: Path, questions: QuestionSet) -> None:
    parts = ("sft", "preference", "validation", "test")
    known = [asked(row) for part in parts for row in rows(folder / f"{part}.jsonl")]
    assert len(known) == 7_600
    own: list[list[str]] = []
    for question in questions.questions:
        own += [list(question.turns[:turn]) for turn in range(1, len(question.turns) + 1)]
    assert [texts for texts in own if texts in known] == []
    assert len({tuple(texts) for texts in own}) == len(own) == 224


def test_the_reference_has_10_and_every_other_answer_far_less(questions: QuestionSet) -> None:
    for question in questions.questions:
        answers = [reference or "" for reference in question.references]
        for turn in range(1, len(answers) + 1):
            assert score(question, turn, answers) == 10
            for wrong in ("I would rather not say.", f"Oh, I think it is {answers[turn - 1]}", "Seven"):
                assert score(question, turn, [*answers[: turn - 1], wrong]) == 2
            assert score(question, turn, [*answers[: turn - 1], "no no no no no no no no no no"]) < 2
            assert score(question, turn, [*answers[: turn - 1], ""]) == 1


def test_a_second_answer_is_right_whatever_the_first_one_was(questions: QuestionSet) -> None:
    for question in questions.questions:
        if len(question.turns) == 2:
            assert score(question, 2, ["Ugh, not again.", question.references[1] or ""]) == 10


def score(question: Question, turn: int, answers: list[str]) -> float:
    return grade(question, turn, answers).score


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["alone", "after a system"])
def test_what_is_taken_is_not_asked_again_and_the_others_are_drawn_as_before(system: list[dict[str, str]]) -> None:
    before = question_rows([], seed=0, count=16)
    taken = [[*system, {"role": "user", "content": before[2]["turns"][0]}]]  # pyright: ignore[reportIndexIssue]
    after = question_rows(taken, seed=0, count=16)
    assert after[:2] == before[:2]
    assert after[2]["category"] == before[2]["category"] == "sorting"
    assert after[2]["turns"] != before[2]["turns"]


def test_more_questions_than_there_are_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="smaller parts"):
        question_rows([], seed=0, count=20_000)
    with pytest.raises(DataError, match="at least 1"):
        question_rows([], seed=0, count=0)
