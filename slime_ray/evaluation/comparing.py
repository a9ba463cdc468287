"""Two models compared: is B better than A, with what confidence, and on which categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from slime_ray.errors import ConfigError
from slime_ray.evaluation.judgments import Judgments
from slime_ray.evaluation.report.numbers import Estimate, Numbers, PairReport
from slime_ray.evaluation.reporting import Found, find, report_on
from slime_ray.evaluation.verdicts import Rule
from slime_ray.storage import named

# Of what all games were played against.
_EVEN = Estimate(value=50.0, low=None, high=None, questions=0, judged=0)


class Comparing(Numbers):
    """What a comparison of two models says."""

    answer: str
    """In words."""
    scale: str
    """grades (1-10) or wins (percent against the baseline)."""
    score_a: Estimate
    score_b: Estimate
    pair: PairReport
    detectable: float | None
    """The smallest difference that these questions show with 80 % power at 5 %."""
    notes: list[str]


def compare_models(
    model_a: str, model_b: str, *, within: Sequence[Path], rule: Rule | None, different_sets: bool
) -> Comparing:
    """Compare two models on the questions that both have.

    Args:
        model_a: a model of `within`; or a folder or file of one model's judgments, or PATH:MODEL.
        model_b: the same.
        within: evaluations or judgment files that hold both, where the models are given by their names.
        rule: how verdicts are read.
        different_sets: compare although one has questions that the other lacks.

    Raises:
        ConfigError: there is no such model or file.
        DataError: the judgments cannot be read, or the models answered different questions.
    """
    if model_a == model_b:
        raise ConfigError(f"{model_a} is compared with itself; name two models")
    found = find(within, rule=rule) if within else _together(_one(model_a, rule), _one(model_b, rule))
    found = _alone(found, {model_a, model_b})
    report = report_on(found, baseline=model_a, different_sets=different_sets)
    pair = next((each for each in report.pairs if model_b in (each.model_a, each.model_b)), None)
    if pair is None:  # B is what all games were played against, and stands first
        report = report_on(found, baseline=model_b, different_sets=different_sets)
        pair = _turned(next(each for each in report.pairs if model_a in (each.model_a, each.model_b)))
    scores = {model.name: model.overall for model in report.models}
    return Comparing(
        answer=_answer(pair, report.detectable),
        scale=report.scale,
        score_a=scores.get(model_a, _EVEN),
        score_b=scores.get(model_b, _EVEN),
        pair=pair,
        detectable=report.detectable,
        notes=report.notes,
    )


def verdict_table(found: Comparing) -> Table:
    """For a terminal: the answer in words, then both scores and the difference, by category too."""
    pair, digits = found.pair, 2 if found.scale == "grades" else 1
    table = Table(title=Text(found.answer), title_justify="left")
    for name in ("", pair.model_a, pair.model_b, "difference", "95 % interval", "questions"):
        table.add_column(Text(name), justify="left" if not name else "right")
    values = (found.score_a.value, found.score_b.value, pair.difference)
    shown = ("-" if value is None else f"{value:.{digits}f}" for value in values)
    table.add_row("over all", *shown, _interval(pair.low, pair.high, digits), str(pair.questions), end_section=True)
    for category, each in pair.categories.items():
        difference = "-" if each.value is None else f"{each.value:.{digits}f}"
        table.add_row(Text(category), "", "", difference, _interval(each.low, each.high, digits), str(each.questions))
    return table


def _answer(pair: PairReport, detectable: float | None) -> str:
    if pair.difference is None or pair.low is None or pair.high is None or pair.p is None:
        shared = f"{pair.questions} shared question{'s' if pair.questions != 1 else ''}"
        return f"{shared} say nothing about {pair.model_a} and {pair.model_b}"
    found = f"difference {pair.difference:+.3g}, 95 % interval {pair.low:.3g} to {pair.high:.3g}, p = {pair.p:.3g}"
    if pair.low <= 0.0 <= pair.high or pair.p > 0.05:
        least = "" if detectable is None else f"; these questions show differences from {detectable:.2g} on"
        return f"no difference shown between {pair.model_a} and {pair.model_b} ({found}{least})"
    better, worse = (pair.model_b, pair.model_a) if pair.difference > 0 else (pair.model_a, pair.model_b)
    return f"{better} is better than {worse} ({found})"


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "-" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _turned(pair: PairReport) -> PairReport:
    """The same with the models exchanged."""

    def negative(value: float | None) -> float | None:
        return None if value is None else -value

    categories = {
        name: each.model_copy(
            update={"value": negative(each.value), "low": negative(each.high), "high": negative(each.low)}
        )
        for name, each in pair.categories.items()
    }
    return pair.model_copy(
        update={
            "model_a": pair.model_b,
            "model_b": pair.model_a,
            "difference": negative(pair.difference),
            "low": negative(pair.high),
            "high": negative(pair.low),
            "only_a": pair.only_b,
            "only_b": pair.only_a,
            "categories": categories,
        }
    )


def _alone(found: Found, models: set[str]) -> Found:
    """The judgments of two models alone; what they played against others counts."""
    judgments = found.judgments
    grades = [each for each in judgments.grades if each.model in models]
    comparisons = [each for each in judgments.comparisons if models & set(each.models)]
    names = {name for each in (*grades, *comparisons) for name in each.models}
    if not models <= names:
        known = sorted({name for each in (*judgments.grades, *judgments.comparisons) for name in each.models})
        missing = ", ".join(sorted(models - names))
        raise ConfigError(f"{missing} was not judged there; there are {', '.join(known)}")
    return replace(found, judgments=replace(judgments, grades=grades, comparisons=comparisons))


def _one(given: str, rule: Rule | None) -> Found:
    """One model's judgments, under the name that the user gave."""
    path, _, model = given.rpartition(":") if not named(given).exists() else (given, "", "")
    if not path or not named(path).exists():
        raise ConfigError(
            f"{given}: no such folder or file; give a folder or file of judgments, PATH:MODEL where it has several "
            "models, or the models' names with --in PATH"
        )
    found = find([named(path)], rule=rule)
    names = {grade.model for grade in found.judgments.grades}
    names |= {each.model_2 for each in found.judgments.comparisons}
    if (model and model not in names) or (not model and len(names) > 1):
        raise ConfigError(f"{given}: has judgments of {', '.join(sorted(names))}; name one of them as {path}:MODEL")
    model = model or names.pop()
    grades = [replace(grade, model=given) for grade in found.judgments.grades if grade.model == model]
    met = [replace(each, model_2=given) for each in found.judgments.comparisons if each.model_2 == model]
    return replace(found, judgments=replace(found.judgments, grades=grades, comparisons=met), answers=None, about=None)


def _together(first: Found, second: Found) -> Found:
    if first.rule != second.rule:
        raise ConfigError(f"the judgments were read by different rules, {first.rule} and {second.rule}; set --rule")
    one, other = first.judgments, second.judgments
    judgments = Judgments(
        grades=[*one.grades, *other.grades],
        comparisons=[*one.comparisons, *other.comparisons],
        categories={**one.categories, **other.categories},
        sources=[*one.sources, *other.sources],
        notes=[*one.notes, *other.notes],
    )
    questions = {question.id: question for question in (*first.questions, *second.questions)}
    return Found("comparison", first.rule, judgments, questions=tuple(questions.values()))
