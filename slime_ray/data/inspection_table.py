"""The result of an inspection as a table that fits on one screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, get_args

from slime_ray.data.inspection import FileInspection, Inspection, Lengths, Spread
from slime_ray.data.preferences import SkipReason

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN_ROWS = 8


def render(inspection: Inspection) -> RenderableType:
    """A rich table with a column for each file, then the first skipped rows and template problems."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for file in inspection.files:
        table.add_column(Text(_short(file.path)), justify="right", overflow="fold")
    for label, value in _LINES:
        values = [value(file) for file in inspection.files]
        if any(shown is not None for shown in values):
            table.add_row(label, *(Text("-" if shown is None else shown) for shown in values))
    notes = [Text(note, style="yellow") for file in inspection.files for note in _notes(file)]
    return Group(table, *notes)


def _short(path: str) -> str:
    """The file and its folder: enough to know it by."""
    return "/".join(PurePath(path).parts[-2:])


def _notes(file: FileInspection) -> list[str]:
    places: dict[tuple[str, str], list[str]] = {}
    for row in file.skipped_rows:
        path, _, line = row.source.rpartition(":")
        places.setdefault((path, row.reason), []).append(line)
    notes = []
    for (path, reason), lines in places.items():
        more = f" and {len(lines) - _SHOWN_ROWS} more (--json has all)" if len(lines) > _SHOWN_ROWS else ""
        notes.append(f"{path}: {reason} at {', '.join(lines[:_SHOWN_ROWS])}{more}")
    return notes + list(file.template_problems.examples if file.template_problems else ())


def _spread(side: Callable[[Lengths], Spread | None]) -> Callable[[FileInspection], str | None]:
    def shown(file: FileInspection) -> str | None:
        spread = side(file.lengths)
        return f"{spread.min}/{spread.median}/{spread.p95}/{spread.max}" if spread else None

    return shown


def _number(count: Callable[[FileInspection], int | None]) -> Callable[[FileInspection], str | None]:
    def shown(file: FileInspection) -> str | None:
        number = count(file)
        return None if number is None else f"{number:,}"

    return shown


def _skipped(reason: SkipReason) -> Callable[[FileInspection], str | None]:
    """No number where there is none, so that a reason without rows takes no line."""
    return lambda file: str(file.skipped[reason]) if file.skipped[reason] else None


def _template_problems(file: FileInspection) -> str | None:
    if file.template_problems is None:
        return None
    kinds = file.template_problems.model_dump(exclude={"examples"})
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"


def _truncated(file: FileInspection) -> str | None:
    cut = file.truncated
    return None if cut is None else f"{cut.prompt} prompts, {cut.completion} answers"


_LINES: tuple[tuple[str, Callable[[FileInspection], str | None]], ...] = (
    ("format", lambda file: file.format),
    ("rows", _number(lambda file: file.rows)),
    ("usable", _number(lambda file: file.usable)),
    *((f"  {reason}", _skipped(reason)) for reason in get_args(SkipReason)),
    ("system message", _number(lambda file: file.system)),
    ("multi-turn", _number(lambda file: file.multi_turn)),
    ("repeated prompts", _number(lambda file: file.repeated_prompts)),
    ("duplicate pairs", _number(lambda file: file.duplicate_pairs)),
    ("contradicting pairs", _number(lambda file: file.contradicting_pairs)),
    ("in train and eval", _number(lambda file: file.prompts_in_train_and_eval)),
    ("min/median/p95/max of", lambda file: file.lengths.unit),
    ("  prompt", _spread(lambda lengths: lengths.prompt)),
    ("  chosen", _spread(lambda lengths: lengths.chosen)),
    ("  rejected", _spread(lambda lengths: lengths.rejected)),
    ("chosen is longer", lambda file: None if file.chosen_longer is None else f"{file.chosen_longer:.0%}"),
    ("cut to max_length", _truncated),
    ("template problems", _template_problems),
)
