"""The course of a study while one command drives it: which trial is begun next, and what became of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slime_ray.data.batching import total_steps
from slime_ray.data.token_cache import PreparedData
from slime_ray.errors import ClusterError, Interrupted, SlimeRayError, StorageError, StudyError
from slime_ray.lease import Lease
from slime_ray.search.bench import Bench, read_score
from slime_ray.search.objectives import figure, needs_answers
from slime_ray.search.shown import Shown, figures
from slime_ray.search.trial import Order, Scoring
from slime_ray.search.trials import Ledger, Origin, Trial
from slime_ray.search.weights import Weights
from slime_ray.storage import create, disk_errors, json_hash, write_bytes
from slime_ray.training.stage import Stage, prepare, resolve


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trial that has not been begun; see `Trial`."""

    origin: Origin
    label: str
    settings: Mapping[str, Any]
    point: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[Origin, ...] = ()


# What is to be tried next, given all that was; None: nothing, or nothing before those that run have ended.
Next = Callable[[Sequence[Trial]], Wanted | None]


def listed(wanted: Sequence[Wanted]) -> Next:
    """Trials of a list, in its order, those that were not begun yet."""

    def following(trials: Sequence[Trial]) -> Wanted | None:
        begun = {(trial.origin, trial.label) for trial in trials}
        return next((each for each in wanted if (each.origin, each.label) not in begun), None)

    return following


@dataclass(slots=True)
class Course:
    """The trials of one command: what is begun next, and what became of each."""

    bench: Bench
    ledger: Ledger
    wanted: Next
    lease: Lease
    weights: Weights
    shown: Shown
    scratch: Path
    """A folder of this command alone."""
    at_once: int = 1
    """Most trials side by side."""
    halted: SlimeRayError | None = None
    """Why no more trials are begun."""
    behind: dict[int, str] = field(default_factory=dict)
    """Trials that were asked to stop, and why."""
    began: dict[int, float] = field(default_factory=dict)
    curves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    placed: set[int] = field(default_factory=set)
    """Trials whose process runs."""
    again: list[int] = field(default_factory=list)
    """Trials that a command which is gone had begun."""
    prepared: dict[str, PreparedData] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.again = [trial.number for trial in self.ledger.trials() if trial.state == "running"]

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune writes down whatever it is given, and nobody reads it: the ledger is all that has to be kept."""
        return {}

    def left(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.again) or self.wanted(self.ledger.trials()) is not None

    def running(self) -> bool:
        """Whether a trial has not ended yet."""
        return any(trial.state == "running" for trial in self.ledger.trials())

    def halt(self, error: SlimeRayError) -> None:
        """Begin no more trials, and have those that run stop after their step."""
        self.halted = self.halted or error
        self.lease.ask("stop")

    def next(self) -> tuple[Trial, Order] | None:
        """The next trial, noted as begun; None: there is no more."""
        while self.halted is None:
            if self.again:
                trial = self.ledger[self.again.pop(0)]
                trial = replace(trial, attempts=trial.attempts + 1)
            elif (wanted := self.wanted(self.ledger.trials())) is not None:
                number = self.ledger.next_number()
                trial = Trial(number, wanted.origin, wanted.label, wanted.settings, wanted.point, also=wanted.also)
            else:
                return None
            if (twin := self._twin(trial)) is not None:
                self._copy(twin, trial)
                continue
            try:
                return self._ordered(trial)
            except StorageError:
                raise
            except SlimeRayError as error:  # these settings do not even make a run
                self._see_unchanged()
                if self.halted is None:
                    self._end(trial, state="failed", reason=str(error))
        return None

    def _see_unchanged(self) -> None:
        """Halt where data or model are not what the study began with: that is no trial's fault."""
        own = self.bench.stage
        try:
            now = resolve(self.bench.recipe)
        except SlimeRayError as error:
            self.halt(error)
            return
        if (now.data_hash, now.model_hash) != (own.data_hash, own.model_hash):
            what = "data" if now.data_hash != own.data_hash else "model"
            self.halt(StudyError(f"{self.bench.name}: the recipe's {what} changed while the study ran; put it back"))

    def _ordered(self, trial: Trial) -> tuple[Trial, Order]:
        stage = resolve(self.bench.trial_recipe(trial.settings))
        own = self.bench.stage
        if (stage.data_hash, stage.model_hash) != (own.data_hash, own.model_hash):  # unless trials differ in them
            self._see_unchanged()
            if self.halted is not None:
                raise self.halted
        prepared = self._prepare(stage)
        settings = stage.recipe.training
        if settings.num_workers != settings.fewest_workers:  # an elastic trial would take the room of the others
            fixed = settings.model_copy(update={"num_workers": settings.fewest_workers})
            stage = replace(stage, recipe=stage.recipe.model_copy(update={"training": fixed}))
        trial = self._record(replace(trial, run=stage.run.name))
        source = self.bench.stage.source
        start = f"run:{source.parent}" if source.parent is not None else source.pinned
        order = Order(
            stage=stage,
            tokens=prepared.folder,
            steps=total_steps(stage.mixture(prepared), settings),
            metric=self.bench.stopping.metric if self.bench.stopping is not None else None,
            lease=(self.lease.folder, self.lease.number, self.lease.token),
            scoring=self._scoring(),
            score=self.bench.score_file(trial.number),
            stop=self._stop_file(trial.number),
            start=(start, self.bench.score_file("start")),
            beside=self.at_once,
        )
        return trial, order

    def _scoring(self) -> Scoring:
        recipe = self.bench.recipe
        answers = needs_answers(self.bench.objectives)
        return Scoring(
            entry=self.bench.heldout.entry,
            max_length=recipe.data.max_length,
            max_new_tokens=self.bench.max_new_tokens if answers else 0,
            runs_dir=self.bench.stage.run.runs_dir,
        )

    def check_stopping(self) -> None:
        """See that there is a step at which a trial could be stopped.

        Raises:
            StudyError: there is none.
        """
        stopping = self.bench.stopping
        if stopping is not None and stopping.first >= self.steps():
            raise StudyError(
                f"stopping.first = {stopping.first}, and a trial has {self.steps()} steps, so none would ever be "
                "stopped; lower it, or leave [stopping] out"
            )

    def steps(self) -> int:
        """That a trial has if its settings do not change it."""
        stage = self.bench.stage
        return total_steps(stage.mixture(self._prepare(stage)), stage.recipe.training)

    def _prepare(self, stage: Stage) -> PreparedData:
        """The rows as tokens: most trials have the same."""
        key = json_hash([stage.model_hash, stage.data_hash, stage.recipe.data.model_dump(), stage.recipe.loss.kind])
        if key not in self.prepared:
            self.prepared[key] = prepare(stage)
        return self.prepared[key]

    # --- What became of trials.

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around what Ray Tune calls: a full disk ends the study in good order, and Ray Tune does not see it."""
        try:
            with disk_errors(self.bench.folder, setting="studies_dir"):
                yield
        except StorageError as error:
            self.halt(error)

    def started(self, number: int) -> None:
        """A trial's process began with it."""
        self.placed.add(number)
        self.began[number] = time.monotonic()

    def evaluated(self, number: int, step: int, value: float) -> None:
        """A trial that runs was evaluated."""
        self.curves.setdefault(number, []).append((step, value))
        self._show()

    def ended(self, number: int, ending: str, reason: str) -> None:
        """A trial's process came to an end and said so."""
        trial = self.ledger[number]
        self.placed.discard(number)
        if ending == "interrupted" and number in self.behind:
            self._end(trial, state="stopped", reason=self.behind[number])
        elif ending == "interrupted":  # with all others: it stays begun, and the same command goes on with it
            self.halt(Interrupted(f"{self.bench.name}: trial {number} was stopped; the same command goes on"))
        elif ending == "disk":
            self.halt(StorageError(f"trial {number}: {reason}"))
        elif ending == "failed":
            self._end(trial, state="failed", reason=reason)
        elif ending == "finished":
            self._finish(trial)

    def fell_behind(self, number: int, step: int, value: float) -> None:
        """A proposed trial is not worth going on with; it is asked to stop after its step.

        Known settings are what it is compared with, and seeds say how much is chance: they are trained to their end.
        """
        stopping = self.bench.stopping
        assert stopping is not None
        if self.ledger[number].origin != "proposed":
            return
        self.behind[number] = (
            f"{stopping.metric} {value:.4g} after step {step}: not in the best 1/{stopping.factor} of the trials that "
            "came so far"
        )
        create(self._stop_file(number), b"")

    def _stop_file(self, number: int) -> Path:
        return self.scratch / f"stop-{number}"

    def lost(self, number: int, error: Exception | None) -> None:
        """A trial failed for the last time, and not by a user's mistake."""
        self.placed.discard(number)
        cause = getattr(error, "cause", None)  # of what Ray makes of an error in another process
        error = cause if isinstance(cause, SlimeRayError) else error
        if isinstance(error, ClusterError):  # its workers found no place: the next trial's would not either
            self.halt(error)
            return
        self._end(self.ledger[number], state="failed", reason=_reason(error))

    def retried(self, number: int) -> None:
        """A trial failed and is tried again."""
        self.placed.discard(number)
        self.shown.say(f"trial {number}: its process failed; trying once more")
        self.curves.pop(number, None)
        trial = self.ledger[number]
        self._record(replace(trial, attempts=trial.attempts + 1))
        self.began[number] = time.monotonic()

    def _finish(self, trial: Trial) -> None:
        values = self._values(trial.number)
        missing = [name for name, value in values.items() if value != value]
        if missing:
            self._end(trial, state="failed", reason=f"{missing[0]} is not a number on the held-out pairs")
        else:
            self._end(trial, state="finished", values=values)

    def _values(self, number: int) -> dict[str, float]:
        select, _ = self.bench.heldout.parts(read_score(self.bench.folder, number))
        start, _ = self.bench.heldout.parts(read_score(self.bench.folder, "start"))
        return {name: figure(name, select, start) for name in self.bench.objectives}

    def _end(self, trial: Trial, **changes: Any) -> None:
        seconds = time.monotonic() - self.began.get(trial.number, time.monotonic())
        curve = tuple(self.curves.get(trial.number, ()))
        trial = self._record(replace(trial, curve=curve, seconds=round(seconds, 2), **changes))
        self.shown.say(f"trial {trial.number} {trial.state}: {figures(trial)}")
        self.weights.tidy(self.ledger.trials(), wait=False)

    def _twin(self, trial: Trial) -> Trial | None:
        same = (t for t in self.ledger.trials() if t.state == "finished" and t.settings == trial.settings)
        return next(same, None)

    def _copy(self, twin: Trial, trial: Trial) -> None:
        write_bytes(self.bench.score_file(trial.number), self.bench.score_file(twin.number).read_bytes())
        changes = {"run": twin.run, "values": twin.values, "curve": twin.curve}
        self._record(replace(trial, state="finished", **changes))

    def _record(self, trial: Trial) -> Trial:
        self.ledger.record(trial)
        self._show()
        return trial

    def _show(self) -> None:
        now = self.ledger.trials()
        self.shown.trials([replace(t, curve=tuple(self.curves.get(t.number, t.curve))) for t in now])


def _reason(error: Exception | None) -> str:
    """Why a process failed, in a line: the last of a traceback, or that it died."""
    if isinstance(error, SlimeRayError):
        return str(error)
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "its process failed and said nothing"
