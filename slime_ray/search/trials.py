"""The ledger of a study: what was tried and what came of it. Its lines are added to and never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from slime_ray.errors import StudyError
from slime_ray.storage import append_text, read_bytes

Origin = Literal["recipe", "paper", "authors", "proposed", "seed", "variant"]
State = Literal["running", "finished", "stopped", "failed"]

SEED = "training.seed"


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of settings and what came of it.

    Attributes:
        number: from 0, in the order in which trials were begun; a trial keeps it over restarts.
        origin: whose settings these are; "seed" repeats others under another seed, "variant" is an ablation's row.
        label: what people call it: a variant's name, "trial 7, seed 2"; empty for a proposed one.
        settings: dotted keys of the recipe that differ from the study's recipe.
        point: the same in the coordinates of the search space; empty for seeds and variants.
        state: "running" also where a command was killed meanwhile.
        run: the run's name, None before it has one.
        values: the objectives on the selecting part of the held-out pairs, of a finished trial; highest is best.
        curve: step and stopping metric at every evaluation.
        reason: why it was stopped or failed.
        attempts: how often it was begun.
        seconds: from its last beginning to its end.
        also: other origins with the same settings, which are tried once.
    """

    number: int
    origin: Origin
    label: str
    settings: Mapping[str, Any]
    point: Mapping[str, Any]
    state: State = "running"
    run: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    reason: str = ""
    attempts: int = 1
    seconds: float = 0.0
    also: tuple[Origin, ...] = ()


class Ledger:
    """The file of a study's trials; who writes it holds the study's lease."""

    def __init__(self, folder: Path) -> None:
        """Args: the study's folder."""
        self._file = ledger_file(folder)
        self._trials = {trial.number: trial for trial in read_trials(folder)}

    def trials(self) -> list[Trial]:
        """All trials as they are now, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def record(self, trial: Trial) -> Trial:
        """Note a trial as it is now."""
        append_text(self._file, json.dumps(asdict(trial), ensure_ascii=False) + "\n")
        self._trials[trial.number] = trial
        return trial

    def next_number(self) -> int:
        """What a new trial is numbered."""
        return max(self._trials, default=-1) + 1


def ledger_file(folder: Path) -> Path:
    """Where a study's folder has its ledger."""
    return folder / "trials.jsonl"


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study's folder as they were last noted, by number; none where there is no study yet.

    Raises:
        StudyError: a line is whole and no trial.
    """
    found: dict[int, Trial] = {}
    file = ledger_file(folder)
    for place, line in enumerate(read_bytes(file).splitlines() if file.exists() else (), 1):
        try:
            values = json.loads(line)
        except ValueError:  # cut short by a crash; what it said is done again
            continue
        try:
            curve = tuple((int(step), float(value)) for step, value in values.pop("curve"))
            trial = Trial(curve=curve, also=tuple(values.pop("also")), **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"{file}:{place}: {error} is not as this version writes trials; go on with the version that began the "
                "study, or give the study another name"
            ) from None
        found[trial.number] = trial
    return [found[number] for number in sorted(found)]


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Trials, each run once: settings proposed twice are no evidence twice.

    Of the trials of a run the first one that finished stands for it, else the first.
    """
    chosen: dict[str, Trial] = {}
    for trial in trials:
        if trial.run is not None:
            known = chosen.setdefault(trial.run, trial)
            if known.state != "finished" and trial.state == "finished":
                chosen[trial.run] = trial
    return [trial for trial in trials if trial.run is None or chosen[trial.run] is trial]


def known_as(trials: Sequence[Trial], origin: Origin) -> Trial | None:
    """The trial of the recipe's own, the paper's or the authors' settings; None if the space does not hold them."""
    return next((trial for trial in trials if trial.origin == origin or origin in trial.also), None)


def repeats(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """A trial and those with its settings under other seeds, in whatever state they are."""
    own = _without_seed(trial)
    return [each for each in trials if each == trial or (each.origin == "seed" and _without_seed(each) == own)]


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.settings.items() if key != SEED}
