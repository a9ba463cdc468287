"""What a judge is shown: prompts in the form of FastChat's judge_prompts.jsonl, a user's or our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slime_ray.errors import DataError
from slime_ray.evaluation.jsonl import read_rows
from slime_ray.evaluation.questions import NEEDS_REFERENCE, Question
from slime_ray.storage import named, text_hash

Kind = Literal["single", "pair", "arena"]

_TYPES: dict[str, Kind] = {"single": "single", "pairwise": "pair", "arena": "arena"}
_BUNDLED = Path(__file__).parent / "bundled" / "judge_prompts.jsonl"
_NO_REFERENCE = "(There is no reference for this answer.)"

# As FastChat's str.format: {name} is a placeholder, {{ and }} are braces, any other brace is an error.
_MARK = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")

_ASKED = {False: ("question",), True: ("question_1", "question_2")}
_ANSWERS: dict[tuple[Kind, bool], tuple[str, ...]] = {
    ("single", False): ("answer",),
    ("single", True): ("answer_1", "answer_2"),
    ("pair", False): ("answer_a", "answer_b"),
    ("pair", True): ("answer_a_1", "answer_a_2", "answer_b_1", "answer_b_2"),
    ("arena", False): ("answer_a", "answer_b"),
}
_REFERENCES = {False: ("ref_answer_1",), True: ("ref_answer_1", "ref_answer_2")}


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One prompt; what it is for follows from its type and its placeholders."""

    name: str
    kind: Kind
    with_reference: bool
    multi_turn: bool
    """It shows both turns and judges the second."""
    system: str
    template: str

    @property
    def hash(self) -> str:
        """Of what the judge is shown; the name is not in it."""
        return text_hash([self.system, self.template])

    def messages(
        self, question: Question, turn: int, answers: Sequence[str] | tuple[Sequence[str], Sequence[str]]
    ) -> list[dict[str, str]]:
        """The chat that asks a judge about turn `turn` (from 1) of a question.

        Placeholders are replaced once, in the template alone: one in a question or an answer stays text.

        Args:
            question: What was asked.
            turn: The turn that is judged.
            answers: One model's answers to turns 1 to `turn`; for a pair or arena prompt those of A and those of B.
        """
        assert turn == (2 if self.multi_turn else 1)
        sides = {"": answers} if self.kind == "single" else {"_a": answers[0], "_b": answers[1]}
        values: dict[str, str] = {}
        for index in range(turn):
            number = f"_{index + 1}" if self.multi_turn else ""
            values[f"question{number}"] = question.turns[index]
            values[f"ref_answer_{index + 1}"] = question.references[index] or _NO_REFERENCE
            for side, texts in sides.items():
                assert not isinstance(texts, str)
                values[f"answer{side}{number}"] = str(texts[index])
        user = _MARK.sub(lambda mark: values[mark[1].lower()] if mark[1] else mark[0][:1], self.template)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]


@dataclass(frozen=True, slots=True)
class JudgePrompts:
    """The prompts of one file, of which a question's category, its references and the turn choose one."""

    path: Path
    prompts: tuple[JudgePrompt, ...]

    def single(self, question: Question, turn: int) -> JudgePrompt:
        """The prompt that grades one answer.

        Raises:
            DataError: the file has none for this turn, with or without a reference.
        """
        return self._chosen("single", question, turn)

    def pair(self, question: Question, turn: int) -> JudgePrompt:
        """The prompt that compares two answers; raises as `single`."""
        return self._chosen("pair", question, turn)

    def arena(self, question: Question) -> JudgePrompt:
        """The prompt that compares two answers to the first turn by Arena-Hard's five labels; raises as `single`."""
        return self._chosen("arena", question, 1)

    def _chosen(self, kind: Kind, question: Question, turn: int) -> JudgePrompt:
        # A second turn without a reference of its own is judged as one without any.
        has_reference = question.category in NEEDS_REFERENCE and question.references[turn - 1] is not None
        with_reference, multi_turn = has_reference and kind != "arena", turn == 2
        for prompt in self.prompts:
            if (prompt.kind, prompt.with_reference, prompt.multi_turn) == (kind, with_reference, multi_turn):
                return prompt
        type_ = next(name for name, known in _TYPES.items() if known == kind)
        needed = _braced(_needed(kind, with_reference=with_reference, multi_turn=multi_turn))
        found = ", ".join(prompt.name for prompt in self.prompts)
        raise DataError(
            f"{self.path}: no prompt of the type {type_} has the placeholders {needed}, which turn {turn} of question "
            f'{question.id} ({question.category}) needs; found: {found}; add one, or use prompts = "bundled"'
        )


def load_prompts(path: str | Path) -> JudgePrompts:
    """Read a prompt file; the path "bundled" names our own.

    The format is that of lm-sys/FastChat (llm_judge/data/judge_prompts.jsonl): name, type (single or pairwise; ours
    has "arena" too), system_prompt and prompt_template. A prompt with {ref_answer_1} is for answers with a reference
    and one with {question_2} for the second turn; so of each type there are at most four. Arena prompts may
    write {QUESTION}, {ANSWER_A} and {ANSWER_B}.

    Raises:
        DataError: a row is malformed, has an unknown placeholder or lacks one, or two rows are for the same case.
    """
    path = _BUNDLED if str(path) == "bundled" else named(str(path))
    found: dict[tuple[Kind, bool, bool], tuple[JudgePrompt, str]] = {}
    for row, source in read_rows(path):
        prompt = _prompt(row, source)
        other, place = found.setdefault((prompt.kind, prompt.with_reference, prompt.multi_turn), (prompt, source))
        if other is not prompt:
            raise DataError(
                f"{source}: the prompt {prompt.name} has the type and the placeholders of {other.name} ({place}); keep "
                "one of the two"
            )
    if not found:
        raise DataError(f"{path}: holds no prompt; expected rows with name, type, system_prompt and prompt_template")
    return JudgePrompts(path, tuple(prompt for prompt, _ in found.values()))


def _prompt(row: Mapping[str, Any], source: str) -> JudgePrompt:
    texts: dict[str, str] = {}
    for field in ("name", "type", "system_prompt", "prompt_template"):
        value = row.get(field, "" if field == "system_prompt" else None)
        if not isinstance(value, str):
            raise DataError(
                f"{source}: {field} is {'missing' if value is None else 'no text'}; expected FastChat's form"
            )
        texts[field] = value
    kind = _TYPES.get(texts["type"])
    if kind is None:
        raise DataError(
            f"{source}: the type of prompt {texts['name']} is {texts['type']!r}; expected {', '.join(_TYPES)}"
        )
    template = texts["prompt_template"]
    marks = {mark[0]: mark[1] for mark in _MARK.finditer(template) if mark[0] not in ("{{", "}}")}
    for mark, name in marks.items():
        if name is None:
            raise DataError(f"{source}: prompt_template has a lone {mark}; write {mark * 2} for the character itself")
    names = {name.lower() if kind == "arena" else name for name in marks.values()}
    with_reference = kind != "arena" and bool(names & set(_REFERENCES[True]))
    multi_turn = kind != "arena" and "question_2" in names
    needed = _needed(kind, with_reference=with_reference, multi_turn=multi_turn)
    if unknown := sorted(names - set(needed)):
        raise DataError(f"{source}: prompt_template has {_braced(unknown)}; a prompt as this knows {_braced(needed)}")
    if missing := [name for name in needed if name not in names]:
        raise DataError(f"{source}: prompt_template lacks {_braced(missing)}; a prompt as this has {_braced(needed)}")
    return JudgePrompt(texts["name"], kind, with_reference, multi_turn, texts["system_prompt"], template)


def _needed(kind: Kind, *, with_reference: bool, multi_turn: bool) -> tuple[str, ...]:
    references = _REFERENCES[multi_turn] if with_reference else ()
    return (*_ASKED[multi_turn], *_ANSWERS[kind, multi_turn], *references)


def _braced(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
