"""What a study optimises: figures on held-out pairs that do not depend on the loss's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from slime_ray.config.study import Objective
from slime_ray.errors import ConfigError
from slime_ray.search.heldout import HeldOut

if TYPE_CHECKING:
    from slime_ray.training.scoring import Score

_CHECKED = ("checked_greedy", "checked_sampled")


def needs_answers(objectives: Sequence[Objective]) -> bool:
    """Whether answers have to be generated."""
    return any(name in _CHECKED for name in objectives)


def check_reportable(objectives: Sequence[Objective], heldout: HeldOut) -> None:
    """See that every trial can report every objective.

    Raises:
        ConfigError: an objective checks answers, and in one of the parts no pair says what a right answer is.
    """
    if needs_answers(objectives) and not min(heldout.checks):
        name = next(name for name in objectives if name in _CHECKED)
        raise ConfigError(
            f"objectives: no trial can report {name}: {heldout.entry} has {sum(heldout.checks)} pairs with a `check`, "
            f"and both of its parts need one; expected others, such as accuracy or chosen_logp"
        )


def pair_values(name: Objective, score: Score, start: Score) -> dict[str, float]:
    """An objective for each pair, by its `file:line`; the highest is best.

    accuracy: whether the chosen answer is the likelier one by mean token log-probability. chosen_logp: nats per token
    of the chosen answer that were gained or, below 0, lost since the starting model. checked_*: whether an answer to
    the prompt is right, greedy or sampled at temperature 1; pairs without a check are left out.

    Args:
        name: the objective.
        score: a trial's.
        start: the starting model's, on the same pairs.
    """
    if name == "accuracy":
        pairs = zip(score.sources, score.chosen, score.rejected, strict=True)
        return {source: float(chosen > rejected) for source, chosen, rejected in pairs}
    if name == "chosen_logp":
        before = dict(zip(start.sources, start.chosen, strict=True))
        after = zip(score.sources, score.chosen, strict=True)
        return {source: chosen - before[source] for source, chosen in after if source in before}
    passed = {a.source: a.greedy_passed if name == "checked_greedy" else a.sampled_passed for a in score.answers}
    return {source: float(value) for source, value in passed.items() if value is not None}


def figure(name: Objective, score: Score, start: Score) -> float:
    """The mean of `pair_values`; nan where there is none."""
    values = list(pair_values(name, score, start).values())
    return float(np.mean(values)) if values else float("nan")
