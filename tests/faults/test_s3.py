"""Trainings whose runs folder is on S3: the server is out of reach, or they are killed while they write there."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_ray.checkpoints import read_checkpoints
from slime_ray.runs import Run
from slime_ray.storage import names
from tests.faults.harness import Start, Started, assert_same_outcome, run_of, wait_until
from tests.storage.s3_server import S3Server, Wire, environment, forget_contacts, make_bucket

OUTAGE_S = 20.0
CLUSTER = {"RAY_ADDRESS": "local", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    started = S3Server()
    yield started
    started.stop()


@pytest.fixture
def runs_dir(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An override that puts the runs of a test into a bucket of its own, which this process reaches too."""
    for name, value in (environment(s3.url) | {"SLIME_RAY_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    forget_contacts()
    name = f"test-{uuid.uuid4().hex[:12]}"
    make_bucket(s3.url, name)
    return f"runs_dir=s3://{name}/runs"


def there(url: str, folder: Path) -> dict[str, str]:
    """The environment of a training that reaches the server by this URL."""
    return environment(url) | {"SLIME_RAY_CACHE": str(folder / "cache")}


def test_storage_that_is_away_for_a_while_costs_nothing_but_that(
    s3: S3Server, recipe: Path, runs_dir: str, start: Start, undisturbed: Run, tmp_path: Path
) -> None:
    wire, run = Wire(s3.port), run_of(recipe, runs_dir)
    training = start(recipe, runs_dir, environment=there(wire.url, tmp_path))
    wait_until(lambda: names(run.checkpoints))
    wire.cut()
    time.sleep(OUTAGE_S)
    assert training.process.is_alive()
    # It was in its middle.
    assert run.manifest() is None
    assert not names(run.final)
    wire.mend()
    ended = training.wait()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert_same_outcome(run, undisturbed)
    assert [event.kind for event in run.events()] == ["started", "finished"]


@pytest.mark.slow
def test_rays_workers_wait_too_and_ray_itself_does_not_need_it(
    s3: S3Server, recipe: Path, runs_dir: str, start: Start, in_one_go: Callable[..., Run], tmp_path: Path
) -> None:
    undisturbed = in_one_go("training.num_workers=2", environment=CLUSTER)
    wire, run = Wire(s3.port), run_of(recipe, runs_dir)
    environment = there(wire.url, tmp_path) | CLUSTER
    training = start(recipe, runs_dir, "training.num_workers=2", environment=environment)
    wait_until(lambda: names(run.checkpoints), timeout_s=120)
    wire.cut()
    time.sleep(OUTAGE_S)
    assert training.process.is_alive()
    assert run.manifest() is None
    wire.mend()
    ended = training.wait()
    assert ended.code == 0, ended.err
    assert_same_outcome(run, undisturbed)
    assert [event.kind for event in run.events()] == ["started", "finished"]
    assert sorted(names(run.runs_dir)) == [".cache", run.name]


@pytest.mark.parametrize("file", ["optimizer.safetensors", "manifest.json"])
def test_what_a_kill_cuts_short_is_not_taken_for_a_checkpoint(
    file: str, s3: S3Server, recipe: Path, runs_dir: str, start: Start, undisturbed: Run, tmp_path: Path
) -> None:
    run = run_of(recipe, runs_dir)
    training: list[Started] = []
    begun: list[str] = []

    def kill(environ: dict[str, Any]) -> int | None:
        """At a file of the third checkpoint."""
        found = re.search(r"checkpoints/(step-\d+)/(.+)", environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] != "PUT" or found is None:
            return None
        if found[1] not in begun:
            begun.append(found[1])
        if len(begun) < 3 or found[2] != file:
            return None
        os.kill(training[0].process.pid or 0, signal.SIGKILL)
        return 503

    with s3.answering(kill):
        training.append(start(recipe, runs_dir, environment=there(s3.url, tmp_path)))
        assert training[0].wait().code == -signal.SIGKILL
    left = names(run.checkpoints / begun[-1])
    assert "model.safetensors" in left
    assert file not in left
    complete, refused = read_checkpoints(run.checkpoints, run=run.hash)
    assert ([each.folder.name for each in complete], refused) == (begun[:-1], [])
    assert run.manifest() is None
    ended = start(recipe, runs_dir, environment=there(s3.url, tmp_path)).wait()
    assert ended.code == 0, ended.err
    assert [(event.kind, event.step) for event in run.events()][:2] == [("started", 0), ("resumed", complete[-1].step)]
    assert_same_outcome(run, undisturbed)
