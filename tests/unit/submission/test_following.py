"""How a job ended: the exit code of a command that followed it, and the sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from slime_ray.errors import ClusterError
from slime_ray.submission import following
from slime_ray.submission.attempts import OURS, newest
from slime_ray.submission.following import ending, exit_code


def job(status: str, **values: Any) -> JobDetails:
    return JobDetails(
        **{
            "type": JobType.SUBMISSION,
            "submission_id": "train-mine-1",
            "status": JobStatus(status),
            "entrypoint": "true",
            "metadata": {OURS: "train-mine-1"},
        }
        | values
    )


@pytest.mark.parametrize(
    ("ended", "code", "sentence"),
    [
        (job("SUCCEEDED", driver_exit_code=0), 0, "train-mine-1: done"),
        (job("STOPPED"), 130, "train-mine-1: stopped; the same command goes on"),
        (job("FAILED", driver_exit_code=3), 3, "train-mine-1: failed with exit code 3; the same command"),
        (job("FAILED", driver_exit_code=-9), 137, "train-mine-1: failed with exit code -9; the same command"),
        (job("FAILED", message="Traceback\nno node"), 1, "train-mine-1: failed (no node); the same command"),
        (job("FAILED"), 1, "train-mine-1: failed (no reason was given); the same command"),
    ],
)
def test_how_a_job_ended(ended: JobDetails, code: int, sentence: str) -> None:
    assert exit_code(ended) == code
    assert ending(ended).startswith(sentence)


def test_the_tenth_attempt_is_newer_than_the_ninth() -> None:
    names = ["train-mine-1", *(f"train-mine-1-{number}" for number in (2, 9, 10))]
    jobs = [job("FAILED", submission_id=name) for name in names]
    other = job("RUNNING", submission_id="train-mine-11", metadata={OURS: "train-mine-11"})
    strange = job("RUNNING", submission_id="train-mine-1-99", metadata={})
    found = newest([*jobs, other, strange], "train-mine-1")
    assert found is not None
    assert found.submission_id == "train-mine-1-10"
    assert newest([strange], "train-mine-1") is None


class Unreadable:
    """A cluster that knows how a job ended, and not its log any more."""

    def __init__(self, ended: JobDetails) -> None:
        self.ended, self.asked = ended, 0

    def job(self, submission_id: str) -> JobDetails:
        return self.ended

    def get_job_logs(self, submission_id: str) -> str:
        self.asked += 1
        raise ClusterError("the node that had it is gone")


def test_a_log_that_is_gone_does_not_hide_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LOOK_S", 0.01)
    cluster: Any = Unreadable(job("FAILED", driver_exit_code=3))
    assert following.follow(cluster, "train-mine-1", show=pytest.fail).driver_exit_code == 3
    assert cluster.asked == 3


class Away:
    """A cluster whose head is replaced, once a job's log has been followed for an hour."""

    def __init__(self, clock: list[float], away: int) -> None:
        self.clock, self.away, self.looks = clock, away, 0

    def job(self, submission_id: str) -> JobDetails:
        self.looks += 1
        if self.looks <= 2:
            return job("RUNNING")
        if self.looks < 3 + self.away:
            self.clock[0] += 1
            raise ClusterError("nobody answers")
        return job("SUCCEEDED", driver_exit_code=0)

    def get_job_logs(self, submission_id: str) -> str:
        return ""

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        if self.looks <= 2:
            self.clock[0] += 3600
        for text in ():
            yield text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    return now


def test_a_cluster_may_be_away_however_long_it_was_followed(clock: list[float]) -> None:
    cluster: Any = Away(clock, away=30)
    assert following.follow(cluster, "train-mine-1", show=pytest.fail).status == JobStatus.SUCCEEDED


def test_a_cluster_that_stays_away_is_lost(clock: list[float]) -> None:
    cluster: Any = Away(clock, away=70)
    with pytest.raises(ClusterError, match=r"^train-mine-1: the cluster was lost \(nobody answers\)"):
        following.follow(cluster, "train-mine-1", show=pytest.fail)
    assert cluster.looks < 70


def test_a_log_is_shown_once_though_it_begins_again() -> None:
    told: list[str] = []
    shown = following._Shown(told.append)
    shown.take("one\ntwo\n", end=8)
    shown.take("one\n", end=4)
    shown.take("two\nthree\n", end=14)
    assert "".join(told) == "one\ntwo\nthree\n"


def test_a_reader_that_left_ends_the_command() -> None:
    code = "from slime_ray.submission.following import write\nfor _ in range(100000): write('line\\n' * 100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 141
