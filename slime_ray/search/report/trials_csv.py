"""A study's trials as CSV: one row a trial, with all settings that any of them changed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from slime_ray.config.recipe import Recipe
from slime_ray.search.space import value_at
from slime_ray.search.trials import Trial

_FACTS = ("number", "origin", "label", "state", "reason", "run", "attempts", "seconds")


def trials_csv(trials: Sequence[Trial], recipe: Recipe, figures: Mapping[int, Mapping[str, float]]) -> str:
    """The file's text.

    Args:
        trials: of the study.
        recipe: that was varied: it has what a trial did not change.
        figures: a finished trial's numbers by column, by the trial's number.
    """
    keys = sorted({key for trial in trials for key in trial.settings})
    columns = list(dict.fromkeys(name for each in figures.values() for name in each))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_FACTS, "also", "last_evaluation", *columns, *keys])
    for trial in trials:
        own = figures.get(trial.number, {})
        writer.writerow(
            [
                *(getattr(trial, name) for name in _FACTS),
                " ".join(trial.also),
                trial.curve[-1][0] if trial.curve else "",
                *(own.get(name, "") for name in columns),
                *(_written(trial.settings.get(key, _own(recipe, key, trial))) for key in keys),
            ]
        )
    return file.getvalue()


def _own(recipe: Recipe, key: str, trial: Trial) -> Any:
    """The recipe's value; none of a whole table, and none where the trial has another table in its place."""
    table, _, rest = key.partition(".")
    return value_at(recipe, key) if rest and table not in trial.settings else ""


def _written(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list | tuple | bool) else value
