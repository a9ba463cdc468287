"""What a judge said of a study's best trials, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slime_ray.errors import StudyError
from slime_ray.evaluation.report.numbers import PairReport, Report
from slime_ray.evaluation.statistics.intervals import Interval

# Percent that a model would win against itself.
_EVEN = 50.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One trial's score.

    Attributes:
        number: the trial's.
        score: on the report's scale, with its 95 % interval over questions.
        lead: over the baseline on the questions that both have; None for the baseline itself.
    """

    number: int
    score: Interval
    lead: Interval | None


@dataclass(frozen=True, slots=True)
class Judgment:
    """Scores of the trials that were judged.

    Attributes:
        scale: what a score is, in words.
        baseline: the trial that leads are over; None: the evaluation's own baseline, `against`.
        against: the baseline's name in the evaluation.
        page: the evaluation's report.
        trials: the best first.
    """

    scale: str
    baseline: int | None
    against: str
    page: Path
    trials: tuple[Judged, ...]

    @classmethod
    def of(cls, report: Report, numbers: Mapping[str, int], *, page: Path) -> Judgment:
        """Read an evaluation's numbers.

        Args:
            report: has a baseline.
            numbers: of the trials, by the models' names.
            page: where people read it.

        Raises:
            StudyError: no trial has a score.
        """
        assert report.baseline is not None
        leads = {pair.model_b: _lead(pair) for pair in report.pairs if pair.model_a == report.baseline}
        trials = [
            Judged(
                numbers[model.name],
                Interval(model.overall.value, model.overall.low, model.overall.high, model.overall.questions),
                leads.get(model.name),
            )
            for model in report.models
            if model.name in numbers and model.overall.value is not None
        ]
        if not trials:
            raise StudyError(f"{report.name}: no trial has a score; {page} says what failed")
        if report.scale == "wins" and report.baseline in numbers:  # it is not scored against itself
            trials.append(Judged(numbers[report.baseline], Interval(_EVEN, None, None, report.questions), None))
            trials.sort(key=lambda each: -each.score.value)
        scale = "mean grade, 1 to 10" if report.scale == "grades" else f"percent won against {report.baseline}"
        return cls(scale, numbers.get(report.baseline), report.baseline, page, tuple(trials))

    def score_of(self, number: int) -> Judged | None:
        """A trial's; None if it was not judged."""
        return next((each for each in self.trials if each.number == number), None)


def _lead(pair: PairReport) -> Interval | None:
    return None if pair.difference is None else Interval(pair.difference, pair.low, pair.high, pair.questions)
