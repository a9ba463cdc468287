"""The one file that knows Optuna's samplers: the next point, a function of the study's seed and what was tried."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from slime_ray.search.optuna_terms import distributions_of, params_of, quiet
from slime_ray.search.space import Parameter, Space
from slime_ray.search.trials import Trial
from slime_ray.storage import json_hash

# Digits of a proposed number that are kept: nobody tells more of them apart, and best.toml is read by people.
_DIGITS = 6

_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def propose(space: Space, trials: Sequence[Trial], *, objectives: Sequence[str], seed: int) -> dict[str, Any]:
    """The next point to try: by a tree-structured Parzen estimator (arXiv 2304.11127), over several objectives where
    there are several.

    It depends on the seed and on what was tried, and on nothing else: a study that was killed goes on as it would
    have. What runs now counts as bad, so that trials at the same time do not crowd.

    Args:
        space: that is searched.
        trials: those tried or running, by number; seeds and variants, which are no points, are passed over.
        objectives: what `Trial.values` has of each finished trial; the highest is best.
        seed: of the study.
    """
    tried = [trial for trial in trials if trial.point]
    own = int(json_hash([seed, len(tried)])[:8], 16)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=own, constant_liar=True)
        study = optuna.create_study(directions=[StudyDirection.MAXIMIZE] * len(objectives), sampler=sampler)
        distributions = distributions_of(space)
        for trial in tried:
            study.add_trial(_told(trial, space, distributions, objectives))
        asked = study.ask(distributions).params
    return {each.key: _value(each, asked[each.key]) for each in space.parameters}


def _told(
    trial: Trial, space: Space, distributions: dict[str, BaseDistribution], objectives: Sequence[str]
) -> FrozenTrial:
    finished = trial.state == "finished"
    # A stopped trial's curve ranks it among the stopped ones; Optuna knows this for one objective alone.
    curve = dict(trial.curve) if trial.state == "stopped" and len(objectives) == 1 else {}
    return create_trial(
        state=_STATES[trial.state],
        params=params_of(trial.point, space),
        distributions=distributions,
        values=[trial.values[name] for name in objectives] if finished else None,
        intermediate_values=curve,
    )


def _value(parameter: Parameter, asked: Any) -> Any:
    if parameter.choices is not None:
        return parameter.choices[asked]
    if parameter.integer:
        return int(asked)
    return min(max(float(f"{asked:.{_DIGITS}g}"), parameter.low), parameter.high)
