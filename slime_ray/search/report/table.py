"""What a study found, at the end of a command: a table and the sentences of its report."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from slime_ray.search.contrasts import Contrasts, Row
from slime_ray.search.findings import Standing, StudyFindings
from slime_ray.search.report.words import (
    OBJECTIVES,
    contrast_paragraph,
    figure,
    notes,
    paragraph,
    short,
    signed,
    told,
    whose,
)


def study_table(found: StudyFindings) -> RenderableType:
    """The winner, what is on the front beside it, and known settings, on both parts; then the sentences."""
    shown = [each for each in found.standings if each is found.winner or each.front or whose(each.trial)]
    table = _table("trial")
    for name in found.evidence.objectives:
        table.add_column(f"{OBJECTIVES[name]},\nselecting", justify="right")
        table.add_column("\nreporting", justify="right")
    judgment = found.evidence.judgment
    if judgment is not None:
        table.add_column("judged", justify="right")
    table.add_column("changed settings", overflow="fold")
    for each in shown:
        score = judgment.score_of(each.trial.number) if judgment is not None else None
        judged = [] if judgment is None else ["" if score is None else figure(score.score.value)]
        table.add_row(_title(each, found), *_both(each, found), *judged, Text(_settings(each)))
    return Group(table, _sentences(paragraph(found)))


def contrasts_table(found: Contrasts) -> RenderableType:
    """Every row with its difference to the recipe as it is; then the sentences."""
    table = _table("row")
    for name in found.objectives:
        table.add_column(OBJECTIVES[name], justify="right")
        table.add_column("difference", justify="right")
    for row in found.rows:
        cells = [cell for name in found.objectives for cell in (figure(row.mean(name)), _difference(row, name))]
        table.add_row(Text(row.variant.label), *cells)
    return Group(table, _sentences([*contrast_paragraph(found), *notes(found)]))


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    return table


def _title(standing: Standing, found: StudyFindings) -> Text:
    known = whose(standing.trial)
    best = "best: " if standing is found.winner else ""
    return Text(f"{best}{told(standing.trial)}" + (f" ({known})" if known else ""))


def _both(standing: Standing, found: StudyFindings) -> list[str]:
    names = found.evidence.objectives
    return [figure(part[name].value) for name in names for part in (standing.selecting, standing.reporting)]


def _settings(standing: Standing) -> str:
    return "  ".join(f"{short(key)} {value}" for key, value in standing.trial.settings.items())


def _difference(row: Row, objective: str) -> str:
    difference = row.differences.get(objective)
    if difference is None:
        return "as it is" if row.same else "not compared"
    interval = difference.interval
    ends = f" ({signed(interval[0])} to {signed(interval[1])})" if interval else ""
    return f"{signed(difference.value)}{ends}{' undecided' if difference.undecided else ''}"


def _sentences(said: list[str]) -> RenderableType:
    return Padding(Text("\n".join(said)), (0, 0, 1, 0), expand=False)
