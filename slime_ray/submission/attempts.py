"""A piece of work as jobs of a cluster: the first attempt, and the next ones after it failed or was stopped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus

from slime_ray.errors import ClusterError
from slime_ray.submission.connection import Connection, RefusedError
from slime_ray.submission.package import packed
from slime_ray.submission.work import Work

# A job of ours has this in its metadata: the id that all attempts at its work share.
OURS = "slime_ray"
_ENDED_BADLY = (JobStatus.FAILED, JobStatus.STOPPED)
# A checkpoint is written after the step in which a job was asked to stop; Ray would kill it after three seconds.
STOP_WAIT_S = 600
# Of commands that submit the same at the same instant one is first; after each failure of a job once more.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Attempt:
    """One job.

    Attributes:
        id: its submission id: that of the work, and from the second on its number.
        found: as it was found, None for one that was just submitted.
    """

    id: str
    found: JobDetails | None


def submit(
    connection: Connection, work: Work, *, submission_id: str, sent: Sequence[str], again: bool = False
) -> Attempt:
    """Submit work unless it is queued, running or done; after a failure or a stop the next attempt goes on with it.

    Args:
        connection: to the cluster.
        work: what to do.
        submission_id: of the first attempt.
        sent: files and folders that travel along.
        again: also where it is done.

    Raises:
        ConfigError: too much would be sent.
        ClusterError: the cluster does not take it.
    """
    name = submission_id
    for _ in range(_TRIES):
        last = newest(connection.jobs(), submission_id)
        if last is not None and not _is_over(last, again):
            return Attempt(str(last.submission_id), last)
        number = 1 if last is None else _number(last, submission_id) + 1
        name = f"{submission_id}-{number}" if number > 1 else submission_id
        with packed(work.files(), sent) as folder:
            if _submitted(connection, work, name, submission_id, folder):
                return Attempt(name, None)
        # Another command was first with this very id: it is found now.
    raise ClusterError(f"{connection.address}: has a job called {name} that `slime-ray submit` did not make; delete it")


def newest(jobs: Sequence[JobDetails], submission_id: str) -> JobDetails | None:
    """The last attempt at a piece of work among a cluster's jobs."""
    found = [job for job in jobs if (job.metadata or {}).get(OURS) == submission_id]
    return max(found, key=lambda job: _number(job, submission_id), default=None)


def _is_over(job: JobDetails, again: bool) -> bool:
    return job.status in _ENDED_BADLY or (again and job.status == JobStatus.SUCCEEDED)


def _number(job: JobDetails, submission_id: str) -> int:
    found = re.fullmatch(r"-(\d+)", str(job.submission_id).removeprefix(submission_id))
    return int(found[1]) if found else 1


def _submitted(connection: Connection, work: Work, name: str, submission_id: str, folder: Path) -> bool:
    """Submit under a name; False where a job has it already."""
    try:
        connection.submit_job(
            entrypoint=shlex.join(["python", "-m", f"jobs.{work.kind}", work.recipe, *work.overrides]),
            submission_id=name,
            # Nothing of this machine's environment goes with it: what is secret is the cluster's own.
            runtime_env={"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}},
            metadata={OURS: submission_id, "kind": work.kind, "recipe": work.name},
        )
    except RefusedError as error:
        if f"{name} already exists" in str(error):
            return False
        raise
    return True
