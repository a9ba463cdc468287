"""From a study's folder to its report: trials and scores are read, what they say is written beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import Objective
from slime_ray.data.preferences import Skipped, read_preferences
from slime_ray.data.split import prompt_key
from slime_ray.search.bench import begun_heldout, read_score
from slime_ray.search.comparison import PairValues, Prompts
from slime_ray.search.contrasts import Contrasts, contrast
from slime_ray.search.findings import Evidence, Measured, StudyFindings, find
from slime_ray.search.heldout import HeldOut
from slime_ray.search.judgment import Judgment
from slime_ray.search.objectives import pair_values
from slime_ray.search.report.page import render_contrasts, render_study
from slime_ray.search.report.trials_csv import trials_csv
from slime_ray.search.space import Space
from slime_ray.search.trials import Trial, read_trials
from slime_ray.search.variants import Variant, own_value
from slime_ray.storage import disk_errors, write_text

if TYPE_CHECKING:
    from slime_ray.training.scoring import Score

REPORT, TRIALS = "report.html", "trials.csv"


def report_study(
    folder: Path,
    *,
    name: str,
    recipe: Recipe,
    objectives: Sequence[Objective],
    space: Space,
    judgment: Judgment | None,
) -> StudyFindings:
    """Write report.html and trials.csv of a search.

    Args:
        folder: of the study.
        name: of the study.
        recipe: that is varied.
        objectives: the first one ranks.
        space: that is searched.
        judgment: of the best trials, where they were judged.

    Raises:
        SlimeRayError: the held-out pairs cannot be read any more, or the folder cannot be written.
    """
    trials, heldout = tuple(read_trials(folder)), begun_heldout(folder)
    measured = {trial.number: _measured(folder, trial, heldout, objectives) for trial in _scored(trials)}
    found = find(Evidence(name, tuple(objectives), trials, measured, _prompts(heldout), judgment), space)
    figures = {
        number: _means(each.selecting, " selecting") | _means(each.reporting, " reporting")
        for number, each in measured.items()
    }
    for judged in judgment.trials if judgment is not None else ():
        figures[judged.number]["judged"] = judged.score.value
    _write(folder, trials_csv(trials, recipe, figures), render_study(found))
    return found


def report_contrasts(
    folder: Path,
    *,
    name: str,
    recipe: Recipe,
    objectives: Sequence[Objective],
    variants: Sequence[Variant],
    seeds: int,
    sensitivity: bool,
) -> Contrasts:
    """Write report.html and trials.csv of an ablation or a sensitivity study.

    Args:
        folder: of the study.
        name: of the study.
        recipe: that is varied.
        objectives: that are measured.
        variants: its rows.
        seeds: that each row is trained with.
        sensitivity: whether each setting is varied alone.

    Raises:
        SlimeRayError: as `report_study`.
    """
    trials, heldout = read_trials(folder), begun_heldout(folder)
    start = read_score(folder, "start")
    measured = {trial.number: _values(read_score(folder, trial.number), start, objectives) for trial in _scored(trials)}
    prompts = _prompts(heldout)
    found = Contrasts(
        name=name,
        objectives=tuple(objectives),
        own={group: own_value(recipe, group) for group in dict.fromkeys(each.group for each in variants)},
        learning_rate=recipe.training.learning_rate,
        rows=contrast(variants, trials, measured, prompts, objectives),
        seeds=seeds,
        pairs=len(start.sources),
        prompts=len({prompts[source] for source in start.sources}),
        sensitivity=sensitivity,
    )
    figures = {number: _means(each) for number, each in measured.items()}
    _write(folder, trials_csv(trials, recipe, figures), render_contrasts(found))
    return found


def _scored(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "finished"]


def _measured(folder: Path, trial: Trial, heldout: HeldOut, objectives: Sequence[Objective]) -> Measured:
    score, start = heldout.parts(read_score(folder, trial.number)), heldout.parts(read_score(folder, "start"))
    return Measured(*(_values(one, other, objectives) for one, other in zip(score, start, strict=True)))


def _values(score: Score, start: Score, objectives: Sequence[Objective]) -> dict[str, PairValues]:
    return {name: pair_values(name, score, start) for name in objectives}


def _means(values: Mapping[str, PairValues], suffix: str = "") -> dict[str, float]:
    return {f"{name}{suffix}": float(np.mean(list(each.values()))) for name, each in values.items()}


def _prompts(heldout: HeldOut) -> Prompts:
    """Every held-out pair's prompt, by a hash of it."""
    rows = read_preferences(heldout.entry)
    return {row.source: prompt_key(row.prompt) for row in rows if not isinstance(row, Skipped)}


def _write(folder: Path, table: str, page: str) -> None:
    with disk_errors(folder, setting="studies_dir"):
        write_text(folder / TRIALS, table)
        write_text(folder / REPORT, page)
