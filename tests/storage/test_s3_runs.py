"""A runs folder on S3: trained, gone on from, held by one process, a parent, served, certified, pruned."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_ray import cli, s3
from slime_ray.errors import RunError, StorageError
from slime_ray.lease import acquire
from slime_ray.overrides import load_recipe
from slime_ray.runs import Run, find_run
from slime_ray.serving.candidate import find as find_candidate
from slime_ray.serving.sources import recipe_of
from slime_ray.serving.trained import Trained
from slime_ray.storage import names, place
from slime_ray.training.fit import train
from slime_ray.training.keeper import RunKeeper
from slime_ray.training.stage import resolve
from tests.faults.harness import metrics_without_timings
from tests.storage.s3_server import KEY, SECRET, S3Server

WriteRecipe = Callable[..., Path]
SETTINGS = {"training.max_steps": 6, "checkpoint.every_steps": 2, "loss.kind": "dpo"}


def content(run: Run) -> tuple[list[dict[str, float]], bytes]:
    return metrics_without_timings(run), (run.final / "model.safetensors").read_bytes()


def test_a_run_is_what_it_is_on_a_disk(
    bucket: str, write_recipe: WriteRecipe, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(SETTINGS | {"data.eval": [str(held_out_file)]})
    here = train(load_recipe(recipe))
    url = f"{bucket}/runs"
    there = train(load_recipe(recipe, [f"runs_dir={url}"]))
    assert str(there.folder) == f"{url}/{here.name}"
    assert content(there) == content(here)
    manifest, expected = there.manifest(), here.manifest()
    assert manifest is not None
    assert expected is not None
    # But for the model card, which has timings.
    assert {name: file for name, file in manifest.files.items() if name != "README.md"} == {
        name: file for name, file in expected.files.items() if name != "README.md"
    }
    assert sorted(names(there.folder)) == sorted(set(names(here.folder)) - {"tensorboard"})
    written = [path.read_bytes() for path in there.folder.rglob("*") if path.is_file()]
    assert not any(secret.encode() in data for data in written for secret in (KEY, SECRET))

    # The same command returns it, a second recipe starts from it, it can be served, and what is of no use goes.
    assert train(load_recipe(recipe, [f"runs_dir={url}"])) == there
    child = load_recipe(write_recipe(SETTINGS | {"model.name": "run:recipe"}, file="child.toml"), [f"runs_dir={url}"])
    assert find_run(place(url), train(child).name).parent == there.name
    for source, *overrides in (["run:recipe", f"runs_dir={url}"], [str(there.folder)], [str(there.final)]):
        served = recipe_of([source], overrides)
        found = find_candidate("recipe", served.models["recipe"], runs_dir=place(served.runs_dir))
        assert found.run == manifest
        assert (Path(found.location) / "model.safetensors").read_bytes() == content(here)[1]
    trained = Trained.of("run:recipe", runs_dir=place(url), pairs=2)
    assert len(trained.logps(trained.samples[0].sides)) == 2
    sys.argv = ["slime-ray", "runs", "--prune", "--runs-dir", url]
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    # Which steps were checkpointed depends on how long one takes.
    assert f"{there.name}/checkpoints/step-" in capsys.readouterr().out
    assert names(there.checkpoints) == []
    assert content(there) == content(here)


def test_a_run_goes_on_from_its_checkpoint(
    bucket: str, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(SETTINGS)
    here = train(load_recipe(recipe))
    remote = load_recipe(recipe, [f"runs_dir={bucket}/runs"])
    run = resolve(remote).run
    log = RunKeeper.log

    def fail(self: RunKeeper, metrics: dict[str, float]) -> None:
        log(self, metrics)
        if metrics["step"] == 5:
            raise RuntimeError("pulled out")

    with monkeypatch.context() as patched:
        patched.setattr(RunKeeper, "log", fail)
        with pytest.raises(RuntimeError, match="pulled out"):
            train(remote)
    assert run.state() == "interrupted"
    with acquire(run.lease, what=run.name, wait=False, say=print):
        assert run.state() == "running"
        with pytest.raises(RunError, match=f"^{run.name} is held by process "):
            train(remote)
    assert train(remote) == run
    assert [event.kind for event in run.events() if event.kind != "warning"] == ["started", "resumed", "finished"]
    assert content(run) == content(here)


def test_storage_that_stays_away_ends_the_run_with_a_sentence(
    bucket: str, server: S3Server, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(SETTINGS)
    here = train(load_recipe(recipe))
    remote = load_recipe(recipe, [f"runs_dir={bucket}/runs"])
    monkeypatch.setattr(s3, "PATIENCE_S", 0.5)
    monkeypatch.setattr(s3, "_BETWEEN_S", 0.1)
    log, away = RunKeeper.log, threading.Event()

    def look(self: RunKeeper, metrics: dict[str, float]) -> None:
        log(self, metrics)
        if metrics["step"] == 3:
            away.set()

    def answer(environ: dict[str, Any]) -> int | None:
        # But for the lease, which this process would hold for ever.
        return 503 if away.is_set() and "/lease" not in environ["PATH_INFO"] + environ["QUERY_STRING"] else None

    with monkeypatch.context() as patched, server.answering(answer):
        patched.setattr(RunKeeper, "log", look)
        with pytest.raises(StorageError) as found:
            train(remote)
    assert re.fullmatch(
        rf"{bucket}/runs/\S+: {server.url} did not answer for \d+ s \(HTTP 503\); what was finished is kept, the same "
        "command goes on",
        str(found.value),
    )
    assert content(train(remote)) == content(here)
