"""Scores of several checkpoints as a table, with some of their answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slime_ray.training.scoring import Answer, Score


def render(scores: Sequence[Score], *, samples: int) -> RenderableType:
    """A table with a row for each checkpoint, then `samples` prompts with the greedy answers of all of them.

    The prompts are taken at even distances from the whole file, not picked.
    """
    figures = list(scores[0].means())
    names = _short_names([score.model for score in scores])
    pairs = len(scores[0].chosen)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=f"{pairs} held-out pairs; mean and 95 % interval; nats a token"
    )
    table.add_column("checkpoint", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", min_width=8)
    for score, label in zip(scores, names, strict=True):
        means = score.means()
        table.add_row(label, *(f"{means[n].value:.2f} ±{means[n].half_width:.2f}" for n in figures))
    return Group(table, *(_side_by_side(scores, names, index) for index in _spread(len(scores[0].answers), samples)))


def _short_names(names: Sequence[str]) -> list[str]:
    """The last parts of the names, where that tells them apart."""
    short = [name.rstrip("/").rpartition("/")[2].removeprefix("run:") for name in names]
    return short if len(set(short)) == len(names) else list(names)


def _side_by_side(scores: Sequence[Score], names: Sequence[str], index: int) -> RenderableType:
    block = Text(f"\n{scores[0].answers[index].prompt}\n", style="bold")
    for score, name in zip(scores, names, strict=True):
        block.append(f"  {name}: ", style="not bold dim")
        answer = score.answers[index]
        block.append(f"{_shortened(answer.greedy)}{_mark(answer)}\n", style="not bold")
    return block


def _mark(answer: Answer) -> str:
    return "" if answer.greedy_passed is None else ("  [right]" if answer.greedy_passed else "  [wrong]")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


def _spread(rows: int, samples: int) -> list[int]:
    """Some row numbers, evenly over all of them."""
    return [round(place * (rows - 1) / max(1, samples - 1)) for place in range(min(samples, rows))]
