"""What the guard does to a run: it warns, it stops it and keeps the best checkpoint, or it keeps quiet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slime_ray.errors import ConfigError, GuardError
from slime_ray.overrides import load_recipe
from slime_ray.runs import Event, Run
from slime_ray.training.fit import train
from slime_ray.training.stage import resolve

WriteRecipe = Callable[..., Path]
# A rate at which the weights run away at once, met at the second evaluation.
RUNAWAY = {"training.learning_rate": 3.0, "training.max_steps": 12, "training.eval_every": 4, "checkpoint.keep_last": 1}


@pytest.fixture
def recipe(write_recipe: WriteRecipe, held_out_file: Path) -> Callable[..., Any]:
    """A function that gives the recipe with some overrides."""
    path = write_recipe(RUNAWAY | {"data.eval": [str(held_out_file)]})
    return lambda *overrides: load_recipe(path, list(overrides))


def warnings(run: Run) -> list[Event]:
    return [event for event in run.events() if event.kind == "warning" and "suspects" not in event.message]


def test_a_run_that_runs_away_is_stopped_with_its_best_checkpoint(recipe: Callable[..., Any], tiny_model: Path) -> None:
    settings = recipe("guard.action=stop")
    run = resolve(settings).run
    with pytest.raises(GuardError) as stopped:
        train(settings)
    assert stopped.value.exit_code == 3
    sentence = str(stopped.value)
    assert sentence.startswith(
        f"{run.name} was stopped by the guard after step 4: step 4, held out: the chosen answers'"
    )
    assert sentence.endswith(
        f". Its best checkpoint is kept as a model in {run.best}; with guard.action=warn the same command goes on"
    )
    assert run.manifest() is None
    assert run.state() == "stopped"
    # No evaluation was better than the start's.
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000000", "step-00000004"]
    kept, start = load_file(run.best / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(kept[name], start[name].double()) for name in start)

    # The same command says the same and trains nothing; told to go on, it does.
    before = run.metrics()
    with pytest.raises(GuardError) as again:
        train(settings)
    assert str(again.value) == sentence
    assert run.metrics() == before
    assert train(recipe("guard.action=warn")) == run
    assert run.metrics()[: len(before)] == before
    assert run.manifest() is not None


def test_a_warning_is_given_once_while_it_lasts(recipe: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    run = train(recipe())
    assert run.manifest() is not None
    found = warnings(run)
    assert found[0].step == 4
    assert len({event.message.partition(":")[2][:25] for event in found}) == len(found)
    printed = capfd.readouterr().err
    for event in found:
        assert f"{run.name}: warning: {event.message}" in printed


def test_switched_off_it_keeps_quiet_and_lists_no_suspects(recipe: Callable[..., Any]) -> None:
    run = train(recipe("guard.action=off"))
    assert [event for event in run.events() if event.kind == "warning"] == []
    assert not (run.folder / "suspects.jsonl").exists()
    # It changes no number.
    assert run.name == resolve(recipe()).run.name


def test_a_sound_run_is_left_in_peace(recipe: Callable[..., Any]) -> None:
    assert warnings(train(recipe("training.learning_rate=1e-3", "guard.action=stop"))) == []


def test_a_metric_that_no_evaluation_gives_is_refused(recipe: Callable[..., Any]) -> None:
    settings = recipe("checkpoint.best_metric=eval_los")
    with pytest.raises(
        ConfigError, match=r"^checkpoint\.best_metric = 'eval_los': .* expected one of eval_entropy/chosen, "
    ):
        train(settings)
