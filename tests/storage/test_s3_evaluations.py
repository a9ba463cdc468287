"""Evaluations and studies behind a URL: the same files as on a disk, and nothing that was kept is paid for twice."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_ray import s3
from slime_ray.errors import RunError, StorageError
from slime_ray.evaluation.requests import remote_store as remote
from slime_ray.evaluation.requests.remote_store import remote_store
from slime_ray.evaluation.requests.store import Outcome, Store
from slime_ray.overrides import load_recipe
from slime_ray.search.trials import read_trials
from slime_ray.storage import names, place, read_bytes, write_bytes
from slime_ray.training.stage import resolve
from tests.command_line import Run as Command
from tests.evaluations import Asked, rows, run_evaluation, served_by, write_evaluation
from tests.faults.harness import wait_until
from tests.openai_server import OpenAIServer
from tests.storage.s3_server import S3Server
from tests.studies import WriteStudy, write_study

__all__ = ["write_study"]


OUTCOME = Outcome("an answer", prompt_tokens=2, completion_tokens=3)


def pay(store: Store, key: str) -> None:
    store.put(key, OUTCOME, evaluation="e", endpoint="models.a")


@pytest.fixture
def models() -> Iterator[OpenAIServer]:
    """Endpoints that answer and judge."""
    with served_by() as server:
        yield server


def put_all(folder: Path, url: str) -> None:
    for path in folder.glob("*.jsonl"):
        write_bytes(place(f"{url}/{path.name}"), path.read_bytes())


def test_an_evaluation_is_what_it_is_on_a_disk(bucket: str, models: OpenAIServer, tmp_path: Path, run: Command) -> None:
    (tmp_path / "here").mkdir()
    here, expected = run_evaluation(write_evaluation(tmp_path / "here", models.url))
    put_all(tmp_path / "here", f"{bucket}/in")
    write_bytes(place(f"{bucket}/in/answers.jsonl"), (here.answers / "b.jsonl").read_bytes())
    settings = {
        "evaluations_dir": f"{bucket}/evaluations",
        "questions.path": f"{bucket}/in/questions.jsonl",
        "models.b.base_url": None,
        "models.b.answers": f"{bucket}/in/answers.jsonl",
    }
    recipe = write_evaluation(tmp_path, models.url, settings)
    asked = Asked(models)
    there, report = run_evaluation(recipe)
    assert asked.count == {"a": 6, "j": 12}
    assert str(there.path) == f"{bucket}/evaluations/night"
    assert report.models == expected.models
    assert (names(there.answers), names(there.judgments)) == (["a.jsonl", "b.jsonl"], ["j_single.jsonl"])
    assert [row["score"] for row in rows(there.judgments / "j_single.jsonl")] == [
        row["score"] for row in rows(here.judgments / "j_single.jsonl")
    ]
    kept = [there.answers / "a.jsonl", there.judgments / "j_single.jsonl", there.path / "store.sqlite"]
    before = [read_bytes(path) for path in kept]

    asked = Asked(models)
    assert run_evaluation(recipe)[1].models == expected.models
    assert asked.count == {}
    assert [read_bytes(path) for path in kept] == before
    told = run("report", str(there.path), "--json")
    assert told.code == 0, told.err
    looked = run("evaluate", recipe, "--dry-run")
    assert looked.code == 0, looked.err


def test_a_store_is_put_back_every_few_seconds(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "EVERY_S", 0.05)
    file = place(f"{bucket}/evaluations/night/store.sqlite")

    def kept() -> int:
        if not file.exists():
            return 0
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(read_bytes(file))
        return sqlite3.connect(copy).execute("SELECT count(*) FROM outcomes").fetchone()[0]

    with remote_store(file, may_write=lambda: True) as store:
        assert kept() == 0
        for number in (1, 2):
            pay(store, str(number))
            wait_until(lambda number=number: kept() == number)
        monkeypatch.setattr(remote, "EVERY_S", 100)
        # A machine that is lost now has lost what follows.
        lost = read_bytes(file)
    with remote_store(file, may_write=lambda: True) as store:
        pay(store, "3")
    assert kept() == 3
    write_bytes(file, lost)
    with remote_store(file, may_write=lambda: True) as store:
        assert store.get("2") is not None
        assert store.get("3") is None
        assert store.payments("e")["models.a"].requests == 2


def test_what_could_not_be_put_back_is_not_paid_for_again(
    bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = place(f"{bucket}/evaluations/night/store.sqlite")
    with remote_store(file, may_write=lambda: True) as store:
        pay(store, "1")
    behind = read_bytes(file)

    def leave_unsaved(key: str) -> None:
        """As a command does that storage is away from in the end."""
        with monkeypatch.context() as patch, server.answering(lambda environ: 503 if put(environ) else None):
            patch.setattr(s3, "PATIENCE_S", 0.2)
            with pytest.raises(StorageError), remote_store(file, may_write=lambda: True) as store:
                pay(store, key)
        assert read_bytes(file) == behind

    leave_unsaved("2")
    with remote_store(file, may_write=lambda: True) as store:
        assert store.get("2") is not None
    assert read_bytes(file) != behind  # though nothing more was paid
    behind = read_bytes(file)
    leave_unsaved("3")
    with monkeypatch.context() as elsewhere:  # a machine that went on meanwhile
        elsewhere.setenv("SLIME_RAY_CACHE", str(tmp_path / "another"))
        with remote_store(file, may_write=lambda: True) as store:
            pay(store, "4")
    with remote_store(file, may_write=lambda: True) as store:
        assert store.get("4") is not None
        assert store.get("3") is None


def put(environ: dict[str, Any]) -> bool:
    return environ["REQUEST_METHOD"] == "PUT"


def test_a_store_that_is_anothers_now_is_left_alone(bucket: str) -> None:
    file = place(f"{bucket}/evaluations/night/store.sqlite")
    with (
        pytest.raises(RunError, match="another process holds this evaluation now"),
        remote_store(file, may_write=lambda: False) as store,
    ):
        pay(store, "1")
    assert not file.exists()


def test_a_study(bucket: str, write_study: WriteStudy, run: Command, tmp_path: Path) -> None:
    import ray

    settings = {"runs_dir": f"{bucket}/runs", "training.max_steps": 2}
    lines = [f'studies_dir = "{bucket}/studies"', f'heldout = "{bucket}/in/selecting.jsonl"', "trials = 2"]
    study = write_study(*lines, 'objectives = ["accuracy"]', settings=settings)
    put_all(tmp_path, f"{bucket}/in")
    for path in (study, tmp_path / "recipe.toml"):
        write_bytes(place(f"{bucket}/in/{path.name}"), path.read_bytes())
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        found = run("tune", f"{bucket}/in/study.toml")
        assert found.code == 0, found.err
        assert found.out.endswith(f"{bucket}/studies/study/report.html\n{bucket}/studies/study/best.toml\n")
        again = run("tune", f"{bucket}/in/study.toml")
        assert again.code == 0, again.err
    finally:
        ray.shutdown()
    folder = place(f"{bucket}/studies/study")
    trials = read_trials(folder)
    assert [(trial.number, trial.state, trial.attempts) for trial in trials] == [(0, "finished", 1), (1, "finished", 1)]
    assert sorted(names(folder)) == sorted(
        ["best.toml", "heldout.json", "lease", "report.html", "scores", "study.json", "trials.csv", "trials.jsonl"]
    )
    best = resolve(load_recipe(f"{bucket}/studies/study/best.toml")).run
    assert best.manifest() is not None
    assert best.name in {trial.run for trial in trials}
