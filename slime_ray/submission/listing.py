"""Jobs as people read them: what was submitted, what became of it, when."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from ray.job_submission import JobDetails
from rich.table import Table

from slime_ray.submission.attempts import OURS, Attempt


def table(jobs: Iterable[JobDetails]) -> Table:
    """Ours among a cluster's jobs, a row each."""
    made = Table("job", "recipe", "state", "exit code", "began", "took", box=None)
    for job in jobs:
        metadata = job.metadata or {}
        if OURS in metadata:
            code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
            made.add_row(
                job.submission_id,
                metadata.get("recipe", ""),
                job.status.value.lower(),
                code,
                _clock(job.start_time),
                _took(job),
            )
    return made


def begun(attempt: Attempt) -> str:
    """How an attempt was found or made, as one sentence."""
    name, found = attempt.id, attempt.found
    if found is None:
        return f"{name}: submitted"
    if found.status.is_terminal():
        return f"{name}: done already, since {_clock(found.end_time)}; --again does it once more"
    return f"{name}: {found.status.value.lower()} already, since {_clock(found.start_time)}; attached"


def _took(job: JobDetails) -> str:
    end = job.end_time or int(datetime.now(UTC).timestamp() * 1000)
    return str(timedelta(seconds=(end - (job.start_time or end)) // 1000))


def _clock(milliseconds: int | None) -> str:
    return datetime.fromtimestamp((milliseconds or 0) / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
