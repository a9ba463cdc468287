"""Scores of several checkpoints as a table, with some of their answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slime_ray.training.scoring import Answer, Score


def render(scores: Sequence[Score], *, samples: int) -> RenderableType:
    """A table with a row for each checkpoint, then `samples` prompts with the greedy answers of all of them."""
    figures = list(scores[0].means())
    table = Table(caption=f"{len(scores[0].chosen)} held-out pairs; mean and 95 % interval; log-probabilities per token")
    table.add_column("checkpoint", no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    for score in scores:
        means = score.means()
        table.add_row(score.model, *(f"{means[n].value:.2f} ±{means[n].half_width:.2f}" for n in figures))
    return Group(table, *(_side_by_side(scores, index) for index in _spread(len(scores[0].answers), samples)))


def _side_by_side(scores: Sequence[Score], index: int) -> RenderableType:
    block = Text(f"\n{scores[0].answers[index].prompt}\n", style="bold")
    for score in scores:
        block.append(f"  {score.model}: ", style="not bold dim")
        answer = score.answers[index]
        block.append(f"{_shortened(answer.greedy)}{_mark(answer)}\n", style="not bold")
    return block


def _mark(answer: Answer) -> str:
    return "" if answer.greedy_passed is None else ("  [right]" if answer.greedy_passed else "  [wrong]")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"


def _spread(rows: int, samples: int) -> list[int]:
    """Some row numbers, evenly over all of them."""
    return [round(place * (rows - 1) / max(1, samples - 1)) for place in range(min(samples, rows))]
