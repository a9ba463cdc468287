"""An evaluation's folder: its answers, judgments, failures and report, in files that other tools read.

    evaluations/NAME/
        evaluation.json             the recipe, what was paid, what ended it early
        questions.jsonl             in MT-Bench's or Arena-Hard's form, as the set has it
        answers/MODEL.jsonl         in FastChat's or Arena-Hard's form
        judgments/JUDGE_single.jsonl, JUDGE_pair.jsonl      FastChat's form
        judgments/JUDGE/MODEL.jsonl                         Arena-Hard's form
        failures.jsonl              what has no answer or no verdict, and why
        report.json, report.md, report.html

Failed rows stand in failures.jsonl alone: a tool that knows no failures averages whatever it finds.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from slime_ray.config.evaluation import PriceConfig
from slime_ray.errors import DataError
from slime_ray.evaluation.answer_files import read_answers
from slime_ray.evaluation.asking import Asked
from slime_ray.evaluation.failures import Failure
from slime_ray.evaluation.jsonl import read_rows
from slime_ray.evaluation.judging import AnswersByModel, Judged, games
from slime_ray.evaluation.questions import QuestionSet
from slime_ray.evaluation.report.numbers import CostReport
from slime_ray.evaluation.verdicts import Choice, Score
from slime_ray.storage import remove, write_json, write_text

Stage = Literal["answer", "judge"]
_PAIR_WINNERS = {0.0: "model_1", 0.5: "tie", 1.0: "model_2"}


class About(BaseModel):
    """evaluation.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    recipe: dict[str, Any] = {}
    prices: dict[str, PriceConfig] = {}
    """By endpoint, of those too that the recipe had before: what they were paid counts."""
    cost: CostReport | None = None
    unfinished: dict[str, str] = {}
    """Why a stage's answers or judgments are not all there."""
    agreement: dict[str, float] = {}
    """A judge's agreement with human labels, in percent, where it was checked."""
    runs: dict[str, str] = {}
    """The run behind a model, as its endpoint told it: whose answers are judged here."""

    @property
    def partial(self) -> str | None:
        """Why this is not the whole evaluation, or None."""
        return "; ".join(f"the {stage} are not all there: {why}" for stage, why in self.unfinished.items()) or None


class EvaluationFolder:
    """The folder of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease = path / "lease"
        self.answers = path / "answers"
        self.judgments = path / "judgments"
        self.questions = path / "questions.jsonl"
        self.failures = path / "failures.jsonl"

    @property
    def begun(self) -> bool:
        """Whether anything was answered or judged."""
        return self.answers.exists() or self.judgments.exists()

    @property
    def judged(self) -> bool:
        """Whether there is a judgment, or one that failed."""
        return any(self.judgments.rglob("*.jsonl")) or any(row["stage"] == "judge" for row in self._failures())

    def discard(self) -> None:
        """Remove what stands there before anything is answered."""
        remove(self.path / "evaluation.json")
        remove(self.questions)

    def about(self) -> About:
        """What evaluation.json says; a new evaluation has an id of its own.

        Raises:
            DataError: the file was edited into something else.
        """
        file = self.path / "evaluation.json"
        if not file.exists():
            return About(id=uuid.uuid4().hex)
        try:
            return About.model_validate_json(file.read_bytes())
        except ValidationError as error:
            found = error.errors()[0]
            where = ": ".join([str(file), *filter(None, [".".join(map(str, found["loc"]))])])
            raise DataError(f"{where}: {found['msg']}; put the original back, or remove the folder") from None

    def note(self, **changes: object) -> None:
        """Change fields of evaluation.json."""
        write_json(self.path / "evaluation.json", self.about().model_copy(update=changes).model_dump(mode="json"))

    def note_unfinished(self, stage: str, why: str | None) -> None:
        """Say in evaluation.json why a stage is not all there, or that it is."""
        others = {name: each for name, each in self.about().unfinished.items() if name != stage}
        self.note(unfinished=others if why is None else {**others, stage: why})

    def note_runs(self, runs: Mapping[str, str | None]) -> None:
        """Say in evaluation.json which run answered as each of these models; None where no run is known."""
        others = {name: run for name, run in self.about().runs.items() if name not in runs}
        self.note(runs={**others, **{name: run for name, run in runs.items() if run is not None}})

    def write_questions(self, questions: QuestionSet) -> None:
        """Write the questions in the form of their set."""
        _write_rows(self.questions, questions.export_rows())

    def write_answers(self, asked: Sequence[Asked], *, models: Iterable[str], style: str, turns: int) -> bool:
        """Write every model's finished answers, and those that failed among the failures.

        Returns:
            Whether these are others than were there before.
        """
        changed = False
        for model in models:
            rows = [_answer_row(each, style) for each in asked if each.model == model and _whole(each, turns)]
            changed |= _write_rows(self.answers / f"{model}.jsonl", rows)
        self._write_failures("answer", (row for each in asked for row in _answer_failures(each)))
        return changed

    def read_answers(self, models: Iterable[str]) -> AnswersByModel:
        """The models' answers, and which of them failed.

        Raises:
            DataError: a model was not asked yet.
        """
        files = [self.answers / f"{model}.jsonl" for model in models]
        for file in files:
            if not file.exists():
                raise DataError(
                    f"{file}: {file.stem} was not asked yet; run slime-ray answer with the same recipe first"
                )
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for row in self._failures():
            if row["stage"] == "answer":
                found[row["model"], str(row["question_id"])] = ()
        answers = read_answers(files)
        for model in answers.models():
            for question, answer in answers.of(model):
                found[model, question] = tuple(turn for turn in answer.turns if turn is not None)
        return found

    def write_judgments(self, judged: Sequence[Judged], *, mode: str) -> None:
        """Write every judge's verdicts, and what has none among the failures; earlier files go."""
        for path in sorted(self.judgments.rglob("*.jsonl")) if self.judgments.is_dir() else []:
            remove(path)
        files: dict[Path, list[dict[str, Any]]] = defaultdict(list)
        if mode == "grade":
            for each in judged:
                if isinstance(each.verdict, Score):
                    files[self.judgments / f"{each.case.judge}_single.jsonl"].append(_grade_row(each, each.verdict))
        for first, second in games(judged):
            if first.failure is not None or second.failure is not None:
                continue  # One game alone would favour an order.
            if mode == "pair":
                files[self.judgments / f"{first.case.judge}_pair.jsonl"].append(_pair_row(first, second))
            else:
                path = self.judgments / first.case.judge / f"{first.case.model_2}.jsonl"
                files[path].append(_arena_row(first, second))
        for path, rows in files.items():
            _write_rows(path, rows)
        self._write_failures("judge", (_judge_failure(each, each.failure) for each in judged if each.failure))

    def _write_failures(self, stage: Stage, rows: Iterable[dict[str, Any]]) -> None:
        """Replace one stage's rows; those of the other stay."""
        others = [row for row in self._failures() if row["stage"] != stage]
        own = [{"stage": stage, **row} for row in rows]
        _write_rows(self.failures, [*own, *others] if stage == "answer" else [*others, *own])

    def _failures(self) -> list[dict[str, Any]]:
        return [row for row, _ in read_rows(self.failures)] if self.failures.exists() else []


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Write a file; whether it has changed."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.exists() and path.read_bytes() == text.encode():
        return False
    write_text(path, text)
    return True


def _whole(asked: Asked, turns: int) -> bool:
    return len(asked.turns) == len(asked.question.turns[:turns]) and asked.turns[-1].failure is None


def _answer_row(asked: Asked, style: str) -> dict[str, Any]:
    question, key = asked.question, asked.key[:22]
    truncated = [turn.cut for turn in asked.turns]
    created = asked.turns[-1].created
    if style == "arena_hard":
        messages = [
            {"role": "user", "content": question.turns[0]},
            {"role": "assistant", "content": {"answer": asked.turns[0].text}},
        ]
        ids = {"uid": question.id, "ans_id": key, "model": asked.model}
        return {**ids, "messages": messages, "tstamp": created, "metadata": {}, "truncated": truncated}
    choices = [{"index": 0, "turns": [turn.text for turn in asked.turns]}]
    ids = {"question_id": question.exported_id, "answer_id": key, "model_id": asked.model}
    return {**ids, "choices": choices, "tstamp": created, "truncated": truncated}


def _answer_failures(asked: Asked) -> Iterator[dict[str, Any]]:
    if (failure := asked.turns[-1].failure) is not None:
        ids = {"question_id": asked.question.exported_id, "model": asked.model, "turn": len(asked.turns)}
        yield {**ids, "repeat": 0, **_failure(failure)}


def _failure(failure: Failure) -> dict[str, Any]:
    return {"kind": failure.kind, "message": failure.message, "attempts": failure.attempts}


def _judge_failure(judged: Judged, failure: Failure) -> dict[str, Any]:
    case = judged.case
    ids = {"question_id": case.question.exported_id, "model": case.model_1, "turn": case.turn, "repeat": case.repeat}
    pair = {} if case.model_2 is None else {"model_2": case.model_2, "swapped": case.swapped}
    return {**ids, "judge": case.judge, **pair, **_failure(failure), "judgment": judged.text}


def _grade_row(judged: Judged, verdict: Score) -> dict[str, Any]:
    case = judged.case
    return {
        "question_id": case.question.exported_id,
        "model": case.model_1,
        "judge": [case.judge, case.prompt.name],
        "user_prompt": case.messages[-1]["content"],
        "judgment": judged.text,
        "score": verdict.value,
        "turn": case.turn,
        "tstamp": judged.created,
        **_ours(judged),
    }


def _pair_row(first: Judged, second: Judged) -> dict[str, Any]:
    case = first.case
    row: dict[str, Any] = {
        "question_id": case.question.exported_id,
        "model_1": case.model_1,
        "model_2": case.model_2,
        "judge": [case.judge, case.prompt.name],
        "turn": case.turn,
        "tstamp": second.created,
    }
    for name, judged in (("g1", first), ("g2", second)):
        row[f"{name}_winner"] = _PAIR_WINNERS[_score_of_second(judged)]
        row[f"{name}_user_prompt"] = judged.case.messages[-1]["content"]
        row[f"{name}_judgment"] = judged.text
    return {**row, "repeat": case.repeat, "category": case.question.category}


def _arena_row(first: Judged, second: Judged) -> dict[str, Any]:
    case = first.case
    games = []
    for judged in (first, second):
        assert isinstance(judged.verdict, Choice)
        prompt = judged.case.messages[-1]["content"]
        games.append({"score": judged.verdict.label, "judgment": {"answer": judged.text}, "prompt": prompt})
    return {
        "uid": case.question.id,
        "category": case.question.category,
        "judge": case.judge,
        "model": case.model_2,
        "baseline": case.model_1,
        "games": games,
        "repeat": case.repeat,
    }


def _ours(judged: Judged) -> dict[str, Any]:
    assert judged.verdict is not None
    category = judged.case.question.category
    return {"repeat": judged.case.repeat, "span": judged.verdict.span, "key": judged.key, "category": category}


def _score_of_second(judged: Judged) -> float:
    assert isinstance(judged.verdict, Choice)
    return 1.0 - judged.verdict.score_b if judged.case.swapped else judged.verdict.score_b
