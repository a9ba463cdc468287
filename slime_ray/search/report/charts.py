"""Geometry of the page's charts; `templates/panels.html.j2` draws them, in units of their own small view box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slime_ray.evaluation.report import charts
from slime_ray.search.comparison import Difference
from slime_ray.search.contrasts import Contrasts, Row
from slime_ray.search.findings import Standing, StudyFindings
from slime_ray.search.report.words import OBJECTIVES, figure, short, span, told
from slime_ray.search.space import Parameter

WIDE = (520.0, 300.0)
SMALL = (240.0, 170.0)
_LEFT, _TOP, _RIGHT, _BOTTOM = 46.0, 22.0, 12.0, 40.0
# Of a range without a scale of its own: values so far apart are drawn by orders of magnitude.
_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Values along one side of a panel; `ticks` are places with labels."""

    ticks: tuple[tuple[float, str], ...]
    start: float
    end: float
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands; what is outside stands at the edge."""
        value, low, high = (math.log(each) if self.log else each for each in (value, self.low, self.high))
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.start + (self.end - self.start) * share, 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a panel: its place, its kind (a class of the style sheet), what it says, and its whisker's ends."""

    x: float
    y: float
    kind: str
    title: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A path of a panel, and where it ends."""

    path: str
    kind: str
    title: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of points and lines on two scales; `rule` is a place on the x scale with a line of its own."""

    title: str
    size: tuple[float, float]
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    rules: tuple[float, ...] = ()
    level: float | None = None
    """A place on the y scale with a line of its own."""


def front(findings: StudyFindings) -> list[Panel]:
    """The first objective against each other one, on the part that selects; trials of the search alone."""
    name, *others = findings.evidence.objectives
    searched = [each for each in findings.standings if each.trial.origin != "seed"]
    return [_front(searched, name, other) for other in others] if searched else []


def _front(standings: Sequence[Standing], first: str, other: str) -> Panel:
    x = _scale([each.trial.values[first] for each in standings], *_across(WIDE))
    y = _scale([each.trial.values[other] for each in standings], *_up(WIDE))
    marks = [
        Mark(
            x.at(each.trial.values[first]),
            y.at(each.trial.values[other]),
            _kind(each, standings[0]),
            f"{told(each.trial)}: {figure(each.trial.values[first])}, {figure(each.trial.values[other])}",
        )
        for each in reversed(standings)
    ]
    edge = sorted(((m.x, m.y) for m, s in zip(marks, reversed(standings), strict=True) if s.front))
    lines = [_line(edge, "front", "Pareto front")] if len(edge) > 1 else []
    return Panel("", WIDE, x, y, OBJECTIVES[first], OBJECTIVES[other], tuple(marks), tuple(lines))


def slices(findings: StudyFindings) -> list[Panel]:
    """The first objective against each setting, the most important one first."""
    name = findings.objective
    searched = [each for each in findings.standings if each.trial.point]
    if not searched:
        return []
    rank = {each.setting: place for place, each in enumerate(findings.importance)}
    own = next((each for each in searched if each.trial.origin == "recipe"), None)
    y = _scale([each.trial.values[name] for each in searched], *_up(SMALL))
    panels = []
    for parameter in sorted(findings.space.parameters, key=lambda each: rank.get(each.key, 0)):
        x, number = _parameter_scale(parameter)
        marks = [
            Mark(
                x.at(number(each.trial.point[parameter.key])),
                y.at(each.trial.values[name]),
                _kind(each, searched[0]),
                f"{told(each.trial)}: {each.trial.point[parameter.key]}, {figure(each.trial.values[name])}",
            )
            for each in reversed(searched)
        ]
        stopped = [
            Mark(
                x.at(number(t.point[parameter.key])),
                y.start,
                "stopped",
                f"{told(t)}: {t.point[parameter.key]}, stopped",
            )
            for t in findings.in_state("stopped")
        ]
        rules = (x.at(number(own.trial.point[parameter.key])),) if own is not None else ()
        panels.append(Panel(short(parameter.key), SMALL, x, y, "", OBJECTIVES[name], (*stopped, *marks), rules=rules))
    return panels


def curves(findings: StudyFindings) -> Panel | None:
    """The stopping metric over the steps of every trial that has it; None where none was noted."""
    trials = [trial for trial in findings.evidence.trials if trial.curve and trial.origin != "seed"]
    if not trials:
        return None
    x = _scale([float(step) for trial in trials for step, _ in trial.curve], *_across(WIDE), keep=(0.0,))
    y = _scale([value for trial in trials for _, value in trial.curve], *_up(WIDE))
    best = findings.winner.trial if findings.winner is not None else None
    lines = [
        _line(
            [(x.at(step), y.at(value)) for step, value in trial.curve],
            "best" if trial == best else trial.state,
            f"{told(trial)}, {trial.state}: {figure(trial.curve[-1][1])} at step {trial.curve[-1][0]}",
        )
        for trial in sorted(trials, key=lambda each: (each == best, each.state != "stopped"))
    ]
    return Panel("", WIDE, x, y, "step", "stopping metric", lines=tuple(lines))


def responses(found: Contrasts, objective: str) -> list[Panel]:
    """Of each setting that was varied alone: the differences to the recipe as it is, with intervals, by value."""
    rows = {group: [row for row in found.of_group(group) if row.variant.value is not None] for group in found.groups}
    varied = {group: each for group, each in rows.items() if any(objective in row.differences for row in each)}
    if not varied:
        return []
    ends = [end for each in varied.values() for row in each for end in _ends(row.differences.get(objective))]
    y = _scale(ends, *_up(SMALL), keep=(0.0,))
    return [_response(group, each, found.own.get(group), objective, y) for group, each in varied.items()]


def _response(group: str, rows: Sequence[Row], own: float | None, objective: str, y: Scale) -> Panel:
    values = [row.variant.value for row in rows if row.variant.value is not None] + ([own] if own is not None else [])
    log = min(values) > 0 and max(values) / min(values) >= _LOG_RATIO / 2
    x = _scale(values, *_across(SMALL), log=log)
    marks = []
    for row in rows:
        difference = row.differences.get(objective)
        if difference is not None and row.variant.value is not None:
            low, high = difference.interval or (None, None)
            kind = "undecided" if difference.undecided else "decided"
            at = [None if end is None else y.at(end) for end in (low, high)]
            marks.append(
                Mark(
                    x.at(row.variant.value),
                    y.at(difference.value),
                    kind,
                    f"{row.variant.label}: {span(difference)}",
                    *at,
                )
            )
    rules = (x.at(own),) if own is not None else ()
    return Panel(group, SMALL, x, y, "", "difference", tuple(marks), rules=rules, level=y.at(0.0))


def difference_axis(rows: Iterable[Row], objective: str) -> charts.Axis:
    """One axis for the differences of all rows."""
    ends = [end for row in rows for end in _ends(row.differences.get(objective))]
    return axis_of([0.0, *ends])


def _ends(difference: Difference | None) -> list[float]:
    return [] if difference is None else [difference.value, *(difference.interval or ())]


def _kind(standing: Standing, winner: Standing) -> str:
    if standing is winner:
        return "best"
    known = {"recipe", "paper", "authors"} & {standing.trial.origin, *standing.trial.also}
    return "known" if known else "front" if standing.front else "finished"


def _across(size: tuple[float, float]) -> tuple[float, float]:
    return _LEFT, size[0] - _RIGHT


def _up(size: tuple[float, float]) -> tuple[float, float]:
    return size[1] - _BOTTOM, _TOP


def _scale(
    values: Iterable[float], start: float, end: float, *, log: bool = False, keep: Sequence[float] = ()
) -> Scale:
    values = list(values)
    if log:
        low, high = min(values) / 1.15, max(values) * 1.15
        return _placed(_log_ticks(low, high), start, end, low, high, log=True)
    axis = axis_of([*values, *keep])
    return _placed(axis.ticks, start, end, axis.low, axis.high)


def axis_of(values: Sequence[float]) -> charts.Axis:
    """An axis that is little wider than the values, of which there is one at least."""
    low, high = min(values), max(values)
    room = (high - low) / 20 or abs(high) / 10 or 1.0
    return charts.axis(values, bounds=(low - room, high + room))


def _placed(
    ticks: Iterable[tuple[float, str]], start: float, end: float, low: float, high: float, *, log: bool = False
) -> Scale:
    bare = Scale((), start, end, low, high, log)
    return Scale(tuple((bare.at(value), label) for value, label in ticks), start, end, low, high, log)


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, with 3 between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 3) if low <= digit * 10.0**power <= high]
    tens = [tick for tick in ticks if math.log10(tick) % 1 < 1e-9 or math.log10(tick) % 1 > 1 - 1e-9]
    return [(tick, f"{tick:g}") for tick in (ticks if len(ticks) <= 4 else tens)]


def _parameter_scale(parameter: Parameter) -> tuple[Scale, Any]:
    """The scale of a searched setting, and what number of it a value is: a choice's is its place."""
    start, end = _across(SMALL)
    if parameter.choices is not None:
        choices = parameter.choices
        ticks = [(float(place), str(choice)) for place, choice in enumerate(choices)]
        return _placed(ticks, start, end, -0.4, len(choices) - 0.6), choices.index
    if parameter.log:
        return _scale([parameter.low, parameter.high], start, end, log=True), float
    return _scale([parameter.low, parameter.high], start, end), float


def _line(points: Sequence[tuple[float, float]], kind: str, title: str) -> Line:
    return Line("M" + "L".join(f"{x:g} {y:g}" for x, y in points), kind, title, points[-1])
