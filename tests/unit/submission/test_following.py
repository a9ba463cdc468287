"""How a job ended: the exit code of a command that followed it, and the sentence."""

from __future__ import annotations

from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

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
