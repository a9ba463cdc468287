"""What is said of a served model: which weights it has, what they came from, its certificate, its scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slime_ray.config.evaluation import EvaluationRecipe
from slime_ray.errors import DataError, ServingError
from slime_ray.evaluation.folder import EvaluationFolder
from slime_ray.evaluation.report.numbers import Report
from slime_ray.serving.candidate import Candidate
from slime_ray.serving.certificate import read_certificate
from slime_ray.serving.served import Card
from slime_ray.storage import json_hash, text_hash


def card(candidate: Candidate, *, dtype: str, certificate: str | None) -> Card:
    """What clients see; no path is in it.

    `run` tells these weights, as they are computed, from all others: an evaluation keeps answers under it.

    Args:
        candidate: the model.
        dtype: that its engine computes in.
        certificate: passed, failed or missing; None for what is no run.
    """
    computed = text_hash([candidate.content, dtype, json_hash(candidate.settings.engine)])
    run = f"{candidate.label}@{computed[:16]}"
    lineage = {
        "run": run,
        "parent": candidate.run.parent if candidate.run else None,
        "data": candidate.run.data if candidate.run else None,
        "certificate": certificate,
        "evaluations": scores(run, Path(EvaluationRecipe.model_fields["evaluations_dir"].default)),
    }
    return Card(candidate.name, lineage)


def scores(run: str, evaluations_dir: Path) -> dict[str, dict[str, Any]]:
    """By evaluation the score of a model, and its interval, where the answers that were judged are this model's own.

    An evaluation that is not all there, or was damaged, says nothing.
    """
    found = {}
    for path in sorted(evaluations_dir.rglob("report.json")) if evaluations_dir.is_dir() else []:
        try:
            runs = EvaluationFolder(path.parent).about().runs
            report = Report.model_validate_json(path.read_bytes())
        except (OSError, ValidationError, DataError):
            continue
        for model in report.models if report.partial is None else []:
            if runs.get(model.name) == run:
                overall = model.overall
                found[report.name] = {"score": overall.value, "low": overall.low, "high": overall.high}
    return found


def check_certificate(candidate: Candidate, *, force: bool, say: Callable[[str], None]) -> str | None:
    """Whether the run's log-probabilities were found to be the trainer's: passed, failed or missing; None for no run.

    Args:
        candidate: the model.
        force: serve it whatever its certificate says.
        say: is told of one that failed or is missing.

    Raises:
        ServingError: it failed, and `force` is off.
    """
    if candidate.run is None:
        return None
    found = read_certificate(candidate.runs_dir / candidate.run.name, files_hash=candidate.content)
    if found is None:
        if not force:
            say(
                f"warning: models.{candidate.name}: the run {candidate.label} has no certificate that the engine gives "
                f"the trainer's log-probabilities; make one: slime-ray certify {candidate.label}"
            )
        return "missing"
    if found.passed:
        return "passed"
    problem = f"models.{candidate.name}: the run {candidate.label} failed its certificate"
    if not force:
        raise ServingError(
            f"{problem}; see why with slime-ray certify {candidate.label}, or serve it all the same with --force"
        )
    say(f"warning: {problem}; it is served all the same, as asked")
    return "failed"
