"""All that the report of a study says, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from slime_ray.evaluation.statistics.intervals import Interval, mean_interval, share_interval
from slime_ray.search.comparison import (
    Difference,
    PairValues,
    Prompts,
    TrainingNoise,
    compare_unpaired,
    excess,
    training_noise,
)
from slime_ray.search.importance import Importance, importance
from slime_ray.search.judgment import Judgment
from slime_ray.search.space import Space
from slime_ray.search.trials import Origin, Trial, distinct, known_as, repeats
from slime_ray.search.weights import dominates, first

_MEANS = ("chosen_logp",)
"""Objectives that are no shares of pairs."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one finished trial did on each held-out pair, by objective, on both parts."""

    selecting: Mapping[str, PairValues]
    reporting: Mapping[str, PairValues]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a study has found out, before anything is made of it.

    Attributes:
        name: the study's.
        objectives: the first one ranks.
        trials: all of them, by number.
        measured: the finished ones', by number.
        prompts: of every held-out pair.
        judgment: of the best trials; None where nothing was judged.
    """

    name: str
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    measured: Mapping[int, Measured]
    prompts: Prompts
    judgment: Judgment | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A finished trial: its figures on the part that selects and on the part that the search never saw.

    Attributes:
        trial: which.
        selecting, reporting: by objective, with 95 % intervals over prompts.
        front: whether no other trial is as high in all objectives and higher in one, on the selecting part.
    """

    trial: Trial
    selecting: Mapping[str, Interval]
    reporting: Mapping[str, Interval]
    front: bool


@dataclass(frozen=True, slots=True)
class Repeated:
    """Settings that were trained with several seeds: the first objective on the reporting part.

    Attributes:
        trial: whose settings.
        values: of each seed with the trial's number, its own first.
    """

    trial: Trial
    values: tuple[tuple[int, float], ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(value for _, value in self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds, of which there are two at least."""
        return stdev(value for _, value in self.values)


@dataclass(frozen=True, slots=True)
class Rival:
    """Settings that people knew before the search, and how far the winner is above them on the reporting part."""

    whose: Origin
    trial: Trial
    difference: Difference


@dataclass(frozen=True, slots=True)
class StudyFindings:
    """What a study found.

    Attributes:
        evidence: from which.
        space: that was searched.
        standings: of all finished trials, the best first: the one that was judged best, then by the first objective;
            then those under other seeds, then those that were tried before.
        importance: of the settings for the first objective; empty with too few trials.
        flattery: the winner's lead over the recipe's own settings on the selecting part less that on the reporting
            part; None where the two are one, or there is no such trial.
        rivals: the recipe's own, the paper's, the authors' settings, as far as they were tried and are not the winner.
        repeated: settings with several seeds.
        noise: what another seed changes in the first objective on the reporting part; None where nothing was repeated.
        fresh: trials with the winner's settings and other seeds; without any, its own trial stands for its settings.
    """

    evidence: Evidence
    space: Space
    standings: tuple[Standing, ...]
    importance: tuple[Importance, ...]
    flattery: Difference | None
    rivals: tuple[Rival, ...]
    repeated: tuple[Repeated, ...]
    noise: TrainingNoise | None
    fresh: int

    @property
    def winner(self) -> Standing | None:
        """None where no trial finished."""
        return self.standings[0] if self.standings else None

    @property
    def objective(self) -> str:
        """The one that ranks."""
        return self.evidence.objectives[0]

    def in_state(self, state: str) -> list[Trial]:
        """The trials that are finished, stopped, failed or running."""
        return [trial for trial in self.evidence.trials if trial.state == state]


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> set[int]:
    """Numbers of the trials that no other one beats: is as high in all objectives and higher in one."""
    return {
        trial.number
        for trial in trials
        if not any(dominates(other.values, trial.values, objectives) for other in trials)
    }


def find(evidence: Evidence, space: Space) -> StudyFindings:
    """Make of a study's trials all that its report says."""
    objective = evidence.objectives[0]
    trials = distinct(evidence.trials)
    order = first(trials, evidence.objectives, count=len(trials))
    if evidence.judgment is not None:
        best = evidence.judgment.trials[0].number
        order.sort(key=lambda trial: trial.number != best)
    front = pareto_front(order, evidence.objectives)
    again = [trial for trial in trials if trial.state == "finished" and trial.origin == "seed"]
    copies = [trial for trial in evidence.trials if trial.state == "finished" and trial not in trials]
    standings = tuple(_standing(trial, evidence, trial.number in front) for trial in [*order, *again, *copies])
    found = tuple(importance(trials, space, objective))
    if not order:
        return StudyFindings(evidence, space, standings, found, None, (), (), None, 0)
    winner, own = order[0], known_as(order, "recipe")
    repeated = {
        trial.number: [trial, *(each for each in repeats(again, trial))] for trial in order if repeats(again, trial)
    }
    on_report = {number: measured.reporting[objective] for number, measured in evidence.measured.items()}
    noise = training_noise(
        [[on_report[each.number] for each in group] for group in repeated.values()], evidence.prompts
    )
    # Chosen among many, the winner's own trial owes something to its seed; its other seeds do not.
    fresh = repeated.get(winner.number, [winner])[1:] or [winner]
    rivals = []
    for whose in ("recipe", "paper", "authors"):
        trial = known_as(order, whose)
        if trial is not None and trial != winner and all(trial != rival.trial for rival in rivals):
            theirs = repeated.get(trial.number, [trial])
            difference = compare_unpaired(
                [on_report[each.number] for each in fresh],
                [on_report[each.number] for each in theirs],
                evidence.prompts,
                noise,
            )
            rivals.append(Rival(whose, trial, difference))
    return StudyFindings(
        evidence,
        space,
        standings,
        found,
        flattery=None if own is None or own == winner else _flattery(winner, own, evidence),
        rivals=tuple(rivals),
        repeated=tuple(_repeated(group, on_report) for group in repeated.values()),
        noise=noise,
        fresh=0 if fresh == [winner] else len(fresh),
    )


def _standing(trial: Trial, evidence: Evidence, front: bool) -> Standing:
    measured = evidence.measured[trial.number]
    return Standing(
        trial,
        *(
            {name: interval_of(name, part[name], evidence.prompts) for name in evidence.objectives}
            for part in (measured.selecting, measured.reporting)
        ),
        front=front,
    )


def interval_of(objective: str, values: PairValues, prompts: Prompts) -> Interval:
    """The mean of an objective over pairs with its 95 % interval over prompts."""
    clusters_N = np.unique([prompts[source] for source in values], return_inverse=True)[1]
    values_N = np.array(list(values.values()), np.float64)
    if objective in _MEANS:
        return mean_interval(values_N, clusters_N)
    return share_interval(values_N > 0.5, clusters_N)


def _flattery(winner: Trial, own: Trial, evidence: Evidence) -> Difference:
    """How much larger the winner's lead is where it was chosen; one seed each, so that their luck is in both leads."""
    objective, ours, theirs = evidence.objectives[0], evidence.measured[winner.number], evidence.measured[own.number]
    leads = [
        compare_unpaired([one[objective]], [other[objective]], evidence.prompts, None)
        for one, other in ((ours.selecting, theirs.selecting), (ours.reporting, theirs.reporting))
    ]
    return excess(*leads)


def _repeated(group: Sequence[Trial], on_report: Mapping[int, PairValues]) -> Repeated:
    values = tuple((each.number, float(np.mean(list(on_report[each.number].values())))) for each in group)
    return Repeated(group[0], values)
