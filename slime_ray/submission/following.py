"""A job that is followed from here: its log as it is written, how it ended, and having it stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from slime_ray.errors import ClusterError
from slime_ray.submission.attempts import STOP_WAIT_S
from slime_ray.submission.connection import Connection

# Between looks at a job, which cost its head node a request each.
_LOOK_S = 0.5
# A head node that is replaced, or a proxy before it, may be away for so long.
_AWAY_S = 60.0
# A connection that is silent for so long may be dead, or the job silent: it is looked at again.
_SILENT_S = 30.0
# Of a job that has ended the log may not be readable any more: its node is gone, or its last bytes are no text.
_LOG_TRIES = 3
_INTERRUPTED = 130


def follow(connection: Connection, submission_id: str, *, show: Callable[[str], None]) -> JobDetails:
    """Show a job's log until it has ended, however often the connection breaks.

    Raises:
        ClusterError: the cluster is gone for longer than a minute, or has no such job.
    """
    shown = _Shown(show)
    for job in _looks(connection, submission_id):
        if job.status.is_terminal():
            _show_rest(connection, submission_id, shown)
            return job
        if job.status != JobStatus.PENDING:
            # What is wrong with the job or the cluster shows with the next look.
            with suppress(ClusterError, RuntimeError, aiohttp.ClientError, TimeoutError):
                asyncio.run(_tail(connection, submission_id, shown))
    raise AssertionError  # looks have no end


def _looks(connection: Connection, submission_id: str) -> Iterator[JobDetails]:
    """A job as it is, again and again; while its cluster is away, as it was.

    Raises:
        ClusterError: there is no such job, or the cluster has been away for a minute.
    """
    job, away_since = connection.job(submission_id), None
    while True:
        yield job
        time.sleep(_LOOK_S)
        try:
            job, away_since = connection.job(submission_id), None
        except ClusterError as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _AWAY_S:
                raise _gone(submission_id, error) from None


class _Shown:
    """A log that is shown once, though it comes from its beginning with each connection."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._length = show, 0

    def take(self, text: str, *, end: int) -> None:
        """Show what is new in a piece of the log that ends at a position."""
        if (new := end - self._length) > 0:
            self._show(text[-new:])
            self._length = end


async def _tail(connection: Connection, submission_id: str, shown: _Shown) -> None:
    pieces, position = connection.tail_job_logs(submission_id), 0
    try:
        while (text := await asyncio.wait_for(anext(pieces, None), _SILENT_S)) is not None:
            position += len(text)
            shown.take(text, end=position)
    finally:
        await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue], an async generator


def _show_rest(connection: Connection, submission_id: str, shown: _Shown) -> None:
    """What was written after the last look, as far as it can be had."""
    for _ in range(_LOG_TRIES):
        with suppress(ClusterError):
            log = connection.get_job_logs(submission_id)
            shown.take(log, end=len(log))
            return
        time.sleep(_LOOK_S)


def _gone(submission_id: str, error: ClusterError) -> ClusterError:
    return ClusterError(
        f"{submission_id}: the cluster was lost ({error}); if it went on without you, the same command finds the job, "
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
        ClusterError: there is no such job, the cluster is gone, or the job does not end.
    """
    until = time.monotonic() + STOP_WAIT_S + _AWAY_S
    asked = False
    for job in _looks(connection, submission_id):
        if job.status.is_terminal():
            return job
        if not asked:
            connection.stop_job(submission_id)
            say(f"{submission_id}: asked to stop; it ends after its step, with a checkpoint")
            asked = True
        if time.monotonic() > until:
            raise ClusterError(f"{submission_id}: was asked to stop and does not end; look at the head node")
    raise AssertionError  # looks have no end


def write(text: str) -> None:
    """Show a piece of a log on standard output; where nobody reads it any more, the command ends."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain in the end
        raise SystemExit(128 + signal.SIGPIPE) from None
