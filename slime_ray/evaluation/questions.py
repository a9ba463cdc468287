"""Questions of one or two turns with their references, in MT-Bench's and Arena-Hard's formats."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from slime_ray.errors import DataError
from slime_ray.evaluation.checks import Check, parse_check
from slime_ray.evaluation.jsonl import read_rows
from slime_ray.storage import json_hash, named

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "reasoning": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "extraction": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""MT-Bench's categories and the temperature at which models answer them (lm-sys/FastChat, llm_judge)."""

ARENA_HARD_TEMPERATURE = 0.0
"""Of all its questions (lmarena/arena-hard-auto)."""

NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""The categories of MT-Bench whose answers a judge sees beside a reference."""

_BASELINES = {
    "arena-hard-v0.1": "gpt-4-0314",
    "hard_prompt": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
}
_BUNDLED = Path(__file__).parent / "bundled"
_FAILED = "$ERROR$"  # what FastChat stores where a request failed


@dataclass(frozen=True, slots=True)
class Question:
    """One question; what the second turn asks is asked after the model's own first answer."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str | None, ...]
    """One a turn; None where there is none."""
    checks: tuple[Check | None, ...]
    """One a turn: what a right answer is, where a program can tell."""
    temperature: float
    """At which models answer it: the question's own, else its category's."""
    origin: str
    """file:line"""

    @property
    def exported_id(self) -> int | str:
        """The id as FastChat's files have it: its numbers are numbers there."""
        return int(self.id) if self.id.isdecimal() and str(int(self.id)) == self.id else self.id


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of one file, in its order."""

    name: str
    """The file's name without its endings, or its folder's if that is only "question"."""
    style: Literal["mt_bench", "arena_hard"]
    questions: tuple[Question, ...]
    baseline: str | None
    """What Arena-Hard compares all models with. None where the categories have none or several, as v2.0 has."""

    @property
    def hash(self) -> str:
        """Of all that is asked and how; the file's name, place and format are not in it."""
        return json_hash([_content(question) for question in self.questions])

    def export_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of a file in the set's own style that reads as the same questions, references and all."""
        for question in self.questions:
            content = _content(question)
            row: dict[str, Any] = (
                {"question_id": question.exported_id, "category": question.category, "turns": content["turns"]}
                if self.style == "mt_bench"
                else {"uid": question.id, "category": question.category, "prompt": question.turns[0]}
            )
            if any(question.references):
                row["reference"] = content["references"]
            if any(question.checks):
                row["checks"] = content["checks"]
            if question.temperature != _default_temperature(question.category, self.style):
                row["required_temperature"] = question.temperature
            yield row


def load_questions(path: str | Path, *, references: Path | None = None) -> QuestionSet:
    """Read a question file; the path "bundled" names our own 80 questions, which bring their references.

    Formats: MT-Bench's {question_id, category, turns, reference?, required_temperature?} and Arena-Hard's {uid,
    category, prompt} of v0.1 and v2.0, told apart by their fields. A question of either may have `checks`, one a turn
    or null. Arena-Hard's `category` is the category, as in its published tables, not its `cluster` or `subcategory`.

    Args:
        path: A JSON, JSONL or gzipped file, its URL, or "bundled".
        references: A file of answers in FastChat's form. What it has for a question counts, not the question's own
            `reference`; for turns beyond its last there is no reference.

    Raises:
        DataError: a row is malformed, an id occurs twice, a category is unknown, or no reference fits a question.
    """
    if str(path) == "bundled":
        path = _BUNDLED / "questions.jsonl"
        references = references or _BUNDLED / "references.jsonl"
        name = "bundled"
    else:
        path = named(str(path))
        stem = path.name.split(".json")[0]
        name = path.absolute().parent.name if stem in ("question", "questions") else stem
    found: dict[str, Question] = {}
    style: Literal["mt_bench", "arena_hard"] | None = None
    for row, source in read_rows(path):
        style = style or _style(row, source)
        question = _question(row, source, style)
        if question.id in found:
            raise _repeated(question.id, source, found[question.id].origin)
        found[question.id] = question
    if style is None:
        raise DataError(f"{path}: holds no question; expected MT-Bench's or Arena-Hard's question.jsonl")
    if references is not None:
        found |= _with_references(found, references, path)
    baselines = {_BASELINES.get(question.category) for question in found.values()}
    baseline = baselines.pop() if style == "arena_hard" and len(baselines) == 1 else None
    return QuestionSet(name, style, tuple(found.values()), baseline)


def missing_references(questions: QuestionSet) -> list[Question]:
    """MT-Bench's questions whose category needs a reference and that have none for any turn."""
    if questions.style != "mt_bench":
        return []
    return [q for q in questions.questions if q.category in NEEDS_REFERENCE and not any(q.references)]


def _style(row: Mapping[str, Any], source: str) -> Literal["mt_bench", "arena_hard"]:
    if "question_id" in row and "turns" in row:
        return "mt_bench"
    if "uid" in row and "prompt" in row:
        return "arena_hard"
    fields = ", ".join(sorted(row)[:8]) or "none"
    raise DataError(
        f"{source}: the row has the fields {fields}; expected MT-Bench's question_id, category and turns, or "
        "Arena-Hard's uid, category and prompt"
    )


def _question(row: Mapping[str, Any], source: str, style: Literal["mt_bench", "arena_hard"]) -> Question:
    field = "question_id" if style == "mt_bench" else "uid"
    given = row.get("turns") if style == "mt_bench" else [row.get("prompt")]
    if not isinstance(given, list) or len(given) not in (1, 2):
        raise DataError(f"{source}: turns is {_shown(given)}; expected a list of one or two texts")
    turns: list[str] = []
    for number, turn in enumerate(given, start=1):
        if not isinstance(turn, str) or not turn.strip():
            raise DataError(f"{source}: turn {number} is {_shown(turn)}; expected a text that asks something")
        turns.append(turn)
    category = row.get("category")
    if not isinstance(category, str) or not category.strip():
        raise DataError(f"{source}: category is {_shown(category)}; expected a name such as writing")
    return Question(
        id=_id(row.get(field), field, source),
        category=category,
        turns=tuple(turns),
        references=_references(row.get("reference"), turns=len(turns), source=source),
        checks=_checks(row.get("checks"), turns=len(turns), source=source),
        temperature=_temperature(row.get("required_temperature"), category=category, style=style, source=source),
        origin=source,
    )


def _id(value: Any, field: str, source: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{source}: {field} is {_shown(value)}; expected a whole number or a text")
    return str(value)


def _default_temperature(category: str, style: str) -> float | None:
    return TEMPERATURES.get(category) if style == "mt_bench" else ARENA_HARD_TEMPERATURE


def _temperature(value: Any, *, category: str, style: str, source: str) -> float:
    if value is None:
        default = _default_temperature(category, style)
        if default is not None:
            return default
        near = difflib.get_close_matches(category.lower(), TEMPERATURES, n=1)
        hint = f"did you mean {near[0]}" if near else f"expected one of {', '.join(TEMPERATURES)}"
        raise DataError(
            f"{source}: MT-Bench has no category {_shown(category)}; {hint}; a category of your own needs "
            "required_temperature in each of its questions"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise DataError(f"{source}: required_temperature is {_shown(value)}; expected a number from 0 to 2")
    return float(value)


def _references(value: Any, *, turns: int, source: str) -> tuple[str | None, ...]:
    texts = _per_turn(value, "reference", turns=turns, source=source)
    for number, text in enumerate(texts, start=1):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{source}: the reference for turn {number} is {_shown(text)}; expected a text or null")
    return tuple(None if text is None or not text.strip() or text == _FAILED else text for text in texts)


def _checks(value: Any, *, turns: int, source: str) -> tuple[Check | None, ...]:
    found: list[Check | None] = []
    for check in _per_turn(value, "checks", turns=turns, source=source):
        if check is not None and not isinstance(check, dict):
            raise DataError(f"{source}: checks has {_shown(check)}; expected an object or null for each turn")
        try:
            found.append(parse_check(check) if check is not None else None)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
    return tuple(found)


def _per_turn(value: Any, field: str, *, turns: int, source: str) -> list[Any]:
    """A list that has a value or None for every turn."""
    given = [] if value is None else value
    if not isinstance(given, list) or len(given) > turns:
        raise DataError(
            f"{source}: {field} is {_shown(value)}; expected a list with at most one entry a turn ({turns})"
        )
    return given + [None] * (turns - len(given))


def _with_references(questions: Mapping[str, Question], path: Path, asked: Path) -> dict[str, Question]:
    """The questions for which a file of answers in FastChat's form has references, with these."""
    found: dict[str, Question] = {}
    places: dict[str, str] = {}
    for row, source in read_rows(path):
        id_ = _id(row.get("question_id"), "question_id", source)
        if id_ in places:
            raise _repeated(id_, source, places[id_])
        places[id_] = source
        match row.get("choices"):
            case [{"turns": list(turns)}, *_]:
                pass
            case choices:
                raise DataError(f"{source}: choices is {_shown(choices)}; expected FastChat's [{{index, turns}}]")
        if id_ in questions:
            texts = _references(turns, turns=len(questions[id_].turns), source=source)
            found[id_] = replace(questions[id_], references=texts)
    if not found:
        raise DataError(f"{path}: none of its {len(places)} references is for a question of {asked}; name its own file")
    return found


def _repeated(id_: str, source: str, earlier: str) -> DataError:
    return DataError(f"{source}: the id {id_} stands at {earlier} already; expected each question once")


def _content(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "category": question.category,
        "turns": list(question.turns),
        "references": list(question.references),
        "checks": [check and check.model_dump() for check in question.checks],
        "temperature": question.temperature,
    }


def _shown(value: Any, *, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "missing" if value is None else text if len(text) <= limit else f"{text[:limit]}..."
