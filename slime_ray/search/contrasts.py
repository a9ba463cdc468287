"""What an ablation or a sensitivity study found: every row against the recipe as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from slime_ray.evaluation.statistics.paired import holm
from slime_ray.search.comparison import Difference, PairValues, Prompts, compare
from slime_ray.search.trials import SEED, Trial
from slime_ray.search.variants import Variant


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an ablation.

    Attributes:
        variant: what was changed.
        trials: its trials, one a seed, in whatever state; those of the recipe itself where nothing was changed.
        means: of each objective over all held-out pairs, one a seed that finished.
        differences: to the recipe as it is, by objective; empty for the recipe itself and without a seed in common.
        p_holm: of the differences, corrected for all rows that were compared in the same objective.
    """

    variant: Variant
    trials: tuple[Trial, ...]
    means: Mapping[str, tuple[float, ...]]
    differences: Mapping[str, Difference]
    p_holm: Mapping[str, float]

    @property
    def same(self) -> bool:
        """Whether the row is the recipe itself."""
        return not self.variant.settings

    def mean(self, objective: str) -> float | None:
        """Over seeds; None where no seed finished."""
        return fmean(self.means[objective]) if self.means[objective] else None

    def spread(self, objective: str) -> float | None:
        """Standard deviation over seeds; None with fewer than two."""
        return stdev(self.means[objective]) if len(self.means[objective]) > 1 else None


@dataclass(frozen=True, slots=True)
class Contrasts:
    """All rows of an ablation.

    Attributes:
        name: the study's.
        objectives: in the order in which they were named.
        own: the recipe's own value of each setting that is varied, by the group of rows.
        learning_rate: the recipe's, which the baselines have too.
        rows: the recipe itself first.
        seeds: that were asked for.
        pairs, prompts: held out.
        sensitivity: whether each setting was varied alone, instead of parts switched off.
    """

    name: str
    objectives: tuple[str, ...]
    own: Mapping[str, float | None]
    learning_rate: float
    rows: tuple[Row, ...]
    seeds: int
    pairs: int
    prompts: int
    sensitivity: bool

    @property
    def groups(self) -> list[str]:
        """Of rows, the recipe itself left out, in their order."""
        return list(dict.fromkeys(row.variant.group for row in self.rows if row.variant.group))

    def of_group(self, group: str) -> list[Row]:
        """Its rows."""
        return [row for row in self.rows if row.variant.group == group]

    @property
    def failed(self) -> list[Trial]:
        """Every failed trial once."""
        found = {trial.number: trial for row in self.rows for trial in row.trials if trial.state == "failed"}
        return list(found.values())


def contrast(
    variants: Iterable[Variant],
    trials: Sequence[Trial],
    measured: Mapping[int, Mapping[str, PairValues]],
    prompts: Prompts,
    objectives: Sequence[str],
) -> tuple[Row, ...]:
    """Compare every row with the recipe as it is, over the seeds that both finished.

    Args:
        variants: the rows, one without settings among them.
        trials: of the study.
        measured: the finished ones' objectives on every held-out pair, by number.
        prompts: of every held-out pair.
        objectives: those that are measured.
    """
    own = {name: _by_seed(_of(trials, {}), measured, name) for name in objectives}
    rows = []
    for variant in variants:
        mine = _of(trials, variant.settings)
        values = {name: _by_seed(mine, measured, name) for name in objectives}
        differences = {
            name: compare(values[name], own[name], prompts)
            for name in objectives
            if variant.settings and values[name].keys() & own[name].keys()
        }
        means = {name: tuple(fmean(each.values()) for each in values[name].values()) for name in objectives}
        rows.append((variant, tuple(mine), means, differences))
    tested = {name: [row[3][name].p if name in row[3] else None for row in rows] for name in objectives}
    corrected = {name: _holm(tested[name]) for name in objectives}
    return tuple(
        Row(*row, p_holm={name: p for name in objectives if (p := corrected[name][place]) is not None})
        for place, row in enumerate(rows)
    )


def _of(trials: Sequence[Trial], settings: Mapping[str, object]) -> list[Trial]:
    """The trials with these settings, under whatever seed."""
    return [trial for trial in trials if {k: v for k, v in trial.settings.items() if k != SEED} == settings]


def _by_seed(
    trials: Iterable[Trial], measured: Mapping[int, Mapping[str, PairValues]], objective: str
) -> dict[int | None, PairValues]:
    """None stands for the recipe's own seed, which no setting names."""
    return {trial.settings.get(SEED): measured[trial.number][objective] for trial in trials if trial.number in measured}


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected for all that there are; equal rows count each, which errs on the side of caution."""
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]
