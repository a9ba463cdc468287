"""A runs folder behind a URL: trained, gone on from, taken as a parent and listed as on a local disk."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray import cli
from slime_ray.overrides import load_recipe
from slime_ray.runs import Run, all_runs, find_run
from slime_ray.storage import place
from slime_ray.training.fit import train
from slime_ray.training.keeper import RunKeeper
from slime_ray.training.stage import resolve

WriteRecipe = Callable[..., Path]
TIMINGS = {"tokens_per_second", "pairs_per_second"}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A runs folder that no disk of this machine holds."""
    monkeypatch.setenv("SLIME_RAY_CACHE", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}/runs"


def content(run: Run) -> tuple[list[dict[str, float]], bytes]:
    lines = [{key: value for key, value in line.items() if key not in TIMINGS} for line in run.metrics()]
    return lines, (run.final / "model.safetensors").read_bytes()


def test_a_run_behind_a_url_is_what_it_is_on_a_disk(
    url: str, write_recipe: WriteRecipe, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.eval": [str(held_out_file)], "training.max_steps": 6, "checkpoint.every_steps": 2}
    recipe = write_recipe(settings | {"loss.kind": "dpo"})
    here = train(load_recipe(recipe))
    there = train(load_recipe(recipe, [f"runs_dir={url}"]))
    assert there.folder == place(url) / here.name
    assert content(there) == content(here)
    manifest, expected = there.manifest(), here.manifest()
    assert manifest is not None
    assert expected is not None
    assert manifest.files.keys() == expected.files.keys()
    assert [run.name for run in all_runs(place(url), [])] == [here.name]

    # The same command returns it, a second recipe starts from it, and what is of no more use goes.
    assert train(load_recipe(recipe, [f"runs_dir={url}"])) == there
    child = load_recipe(write_recipe(settings | {"model.name": "run:recipe"}, file="child.toml"), [f"runs_dir={url}"])
    assert find_run(place(url), train(child).name).parent == there.name
    sys.argv = ["slime-ray", "runs", "--prune", "--runs-dir", url]
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "step-00000004" in capsys.readouterr().out
    assert not [path for path in there.checkpoints.rglob("*") if path.is_file()]
    assert content(there) == content(here)


def test_a_run_behind_a_url_goes_on_from_its_checkpoint(
    url: str, write_recipe: WriteRecipe, held_out_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data.eval": [str(held_out_file)], "training.max_steps": 6, "checkpoint.every_steps": 2}
    recipe = write_recipe(settings)
    here = train(load_recipe(recipe))
    remote = load_recipe(recipe, [f"runs_dir={url}"])
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
    assert train(remote) == run
    assert [event.kind for event in run.events() if event.kind != "warning"] == ["started", "resumed", "finished"]
    assert content(run) == content(here)
