"""What is kept of the trials' runs: the weights of those that may still win, the metrics of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_ray.checkpoints import discard
from slime_ray.lease import acquire, held_by
from slime_ray.manifest import Lineage
from slime_ray.pruning import removable
from slime_ray.runs import Run
from slime_ray.search.trials import Trial, distinct

# Of these people want to see the model, however it fared.
_KEPT = ("recipe", "paper", "authors")


@dataclass(frozen=True, slots=True)
class Weights:
    """Keeps the disk small while trials go on.

    Attributes:
        study: its name.
        runs_dir: where the runs are.
        objectives: the first one ranks.
        top: so many trials by the first objective, and one more, may still be wanted.
    """

    study: str
    runs_dir: Path
    objectives: Sequence[str]
    top: int

    def tidy(self, trials: Sequence[Trial], *, wait: bool) -> None:
        """Remove the weights of trials that ended and cannot win any more, and checkpoints past their use.

        Args:
            trials: all of the study.
            wait: for processes that still write; otherwise their runs are left for the next time.
        """
        kept = {trial.run for trial in trials if trial.state == "running"}
        winning = {trial.run for trial in may_win(trials, self.objectives, top=self.top)}
        for trial in trials:
            if trial.run is not None and trial.run not in kept:
                self._tidy_run(trial, keep=trial.run in winning, wait=wait)

    def _tidy_run(self, trial: Trial, *, keep: bool, wait: bool) -> None:
        assert trial.run is not None
        lineage = Lineage.read(self.runs_dir / trial.run / "lineage.json")
        if lineage is None:
            return
        run = Run(self.runs_dir, lineage.recipe, lineage.hash)
        if not any(path.exists() for path in (run.checkpoints, *([] if keep else [run.final, run.best]))):
            return
        if not wait and held_by(run.lease) is not None:
            return
        lease = acquire(run.lease, what=run.name, wait=True, say=lambda _: None)
        try:
            if not keep:
                run.discard(f"trial {trial.number} of the study {self.study} cannot win any more")
                return
            for folder, _ in list(removable(run)):
                discard(folder)
        finally:
            lease.forget()


def may_win(trials: Sequence[Trial], objectives: Sequence[str], *, top: int) -> list[Trial]:
    """Finished trials that are the recipe's own or a known one, on the Pareto front, or among the first `top` + 1.

    Repeats under other seeds and the rows of an ablation are measured and not chosen among.
    """
    finished = _chosen_among(trials)
    foremost = first(trials, objectives, count=top + 1)
    return [
        trial
        for trial in finished
        if trial.origin in _KEPT
        or trial in foremost
        or not any(dominates(other.values, trial.values, objectives) for other in finished)
    ]


def first(trials: Sequence[Trial], objectives: Sequence[str], *, count: int) -> list[Trial]:
    """So many finished trials with the highest first objective, the earliest of equal ones first."""
    return sorted(_chosen_among(trials), key=lambda trial: (-trial.values[objectives[0]], trial.number))[:count]


def best_of(trials: Sequence[Trial], objectives: Sequence[str]) -> Trial | None:
    """The finished trial with the highest first objective; None if none finished."""
    return next(iter(first(trials, objectives, count=1)), None)


def _chosen_among(trials: Sequence[Trial]) -> list[Trial]:
    finished = [trial for trial in distinct(trials) if trial.state == "finished"]
    return [trial for trial in finished if trial.origin not in ("seed", "variant")]


def dominates(values: Mapping[str, float], others: Mapping[str, float], objectives: Sequence[str]) -> bool:
    """Whether figures are nowhere worse and somewhere better than others."""
    pairs = [(values[name], others[name]) for name in objectives]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
