"""A job that is followed from here: its log as it is written, how it ended, and having it stop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from slime_ray.errors import ClusterError, SlimeRayError
from slime_ray.submission.connection import Connection

_LOOK_S = 0.5
# A head node that is replaced, or a proxy before it, may be away for so long.
_AWAY_S = 60.0
_INTERRUPTED = 130


def follow(connection: Connection, submission_id: str, *, show: Callable[[str], None]) -> JobDetails:
    """Show a job's log until it has ended, however often the connection breaks.

    Raises:
        ClusterError: the cluster is gone for longer than a minute, or has no such job any more.
    """
    shown, away = 0, 0.0
    connection.job(submission_id)

    async def tail() -> None:
        nonlocal shown
        position = 0
        async for text in connection.tail_job_logs(submission_id):  # from its beginning
            if (position := position + len(text)) > shown:
                show(text[len(text) - (position - shown) :])
                shown = position

    while True:
        try:
            job = connection.job(submission_id)
            away = 0.0
            if job.status.is_terminal():
                _show_rest(connection, submission_id, shown, show)
                return job
            if job.status != JobStatus.PENDING:
                asyncio.run(tail())
        except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
            # A job that is known was there a moment ago; what else is wrong shows with the next look.
            away = away or time.monotonic()
            if time.monotonic() - away > _AWAY_S:
                raise _gone(connection, submission_id, error) from None
        time.sleep(_LOOK_S)


def _show_rest(connection: Connection, submission_id: str, shown: int, show: Callable[[str], None]) -> None:
    """What was written after the last look."""
    if len(log := connection.get_job_logs(submission_id)) > shown:
        show(log[shown:])


def _gone(connection: Connection, submission_id: str, error: Exception) -> ClusterError:
    reason = str(error) if isinstance(error, SlimeRayError) else f"{connection.address}: {error}"
    return ClusterError(
        f"{submission_id}: the cluster was lost ({reason}); if it went on without you, the same command finds the job, "
        "and on a new cluster with the same storage it goes on with the work"
    )


def exit_code(job: JobDetails) -> int:
    """What a command that followed a job ends with: the job's own exit code; 130 for one that was stopped."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return _INTERRUPTED
    code = job.driver_exit_code
    return 1 if not code else 128 - code if code < 0 else code


def ending(job: JobDetails) -> str:
    """How a job ended, as one sentence with what to do."""
    name, code = job.submission_id, job.driver_exit_code
    match job.status:
        case JobStatus.SUCCEEDED:
            return f"{name}: done"
        case JobStatus.STOPPED:
            return f"{name}: stopped; the same command goes on with it as the next attempt"
        case _ if code:
            return f"{name}: failed with exit code {code}; the same command makes the next attempt"
        case _:
            reason = (job.message or "no reason was given").strip().splitlines()[-1]
            return f"{name}: failed ({reason}); the same command makes the next attempt"


def stop(connection: Connection, submission_id: str, *, say: Callable[[str], None]) -> JobDetails:
    """Have a job checkpoint and end, and wait until it has.

    Raises:
        ClusterError: there is no such job.
    """
    job = connection.job(submission_id)
    if not job.status.is_terminal():
        connection.stop_job(submission_id)
        say(f"{submission_id}: asked to stop; it ends after its step, with a checkpoint")
    while not (job := connection.job(submission_id)).status.is_terminal():
        time.sleep(_LOOK_S)
    return job


def write(text: str) -> None:
    """Show a piece of a log on standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()
