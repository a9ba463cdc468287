"""What a study shows while it runs: a table of its trials on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slime_ray.search.trials import Trial

# Rows that a terminal has room for; earlier trials that ended are counted in the title.
_ROWS = 20
_WHOSE = {"recipe": "the recipe's own", "paper": "the paper's", "authors": "the authors' code's", "proposed": ""}


class Shown:
    """A context in which sentences and trials are shown on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Show a sentence, above the table if there is one."""
        if self._live is not None:
            self._console.print(sentence, markup=False, highlight=False)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def trials(self, trials: Sequence[Trial]) -> None:
        """Show trials as they are now; a log has a line about each as it ends."""
        if self._live is not None:
            self._live.update(table(trials), refresh=True)


def table(trials: Sequence[Trial]) -> Table:
    """The newest trials in a line each: whose settings, state, figures, or the last evaluation of one that runs."""
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    found = Table(title=f"{len(trials)} trials: {counts}" if trials else "no trial yet", title_justify="left", box=None)
    for column in ("trial", "settings", "state"):
        found.add_column(column)
    found.add_column("figures", overflow="fold")
    for trial in trials[-_ROWS:]:
        settings = trial.label or _WHOSE.get(trial.origin, "") or _point(trial)
        found.add_row(str(trial.number), Text(settings), trial.state, Text(figures(trial)))
    return found


def figures(trial: Trial) -> str:
    """A finished trial's objectives, why another one ended, or how far it is."""
    if trial.state == "finished":
        return "  ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
    if trial.state == "running" and trial.curve:
        step, value = trial.curve[-1]
        return f"step {step}: {value:.4g}"
    return trial.reason


def _point(trial: Trial) -> str:
    return "  ".join(f"{key.rpartition('.')[2]} {value}" for key, value in trial.point.items())
