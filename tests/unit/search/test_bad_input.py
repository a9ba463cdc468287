"""A mistake in a study is one sentence and exit code 2, before anything is trained or a cluster is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.training import TrainingConfig
from slime_ray.errors import ClusterError
from slime_ray.search.tuning import room
from tests.command_line import Run
from tests.conftest import Settings, preference_rows, write_rows
from tests.studies import SPACE, WriteStudy

HALVING = SPACE + "\n[stopping]\nfirst = 2\n"

WRONG: dict[str, tuple[list[str], str, Settings, str]] = {
    "the loss": (['objectives = ["loss"]'], SPACE, {}, "objectives.0 = 'loss': it depends on the settings"),
    "the held-out loss": (['objectives = ["eval_loss"]'], SPACE, {}, "it depends on the settings that are searched"),
    "the margin": (['objectives = ["rewards/margins"]'], SPACE, {}, "it depends on the settings that are searched"),
    "the reward": (['objectives = ["rewards/chosen"]'], SPACE, {}, "it depends on the settings that are searched"),
    "no objective": (
        ['objectives = ["acuracy"]'],
        SPACE,
        {},
        "objectives.0 = 'acuracy'; expected 'accuracy', 'chosen_",
    ),
    "twice": (['objectives = ["accuracy", "accuracy"]'], SPACE, {}, "objectives has one twice"),
    "nothing to check": (['objectives = ["checked_greedy"]'], SPACE, {}, "no trial can report checked_greedy"),
    "stopping by the loss": ([], SPACE + '[stopping]\nfirst = 2\nmetric = "eval_loss"\n', {}, "stopping.metric"),
    "never looked at": ([], HALVING, {"training.eval_every": None}, "training.eval_every is not set in the recipe"),
    "a scheduler": ([], SPACE + '[scheduler]\nkind = "pbt"\n', {}, "scheduler is not a setting"),
    "no recipe": (['recipe = "other.toml"'], SPACE, {}, "other.toml: no such recipe; expected a TOML file"),
    "no pairs": (['heldout = "nowhere.jsonl"'], SPACE, {}, "nowhere.jsonl"),
    "a misspelt key": ([], SPACE.replace("kappa", "kapa").replace("power", "powr"), {}, "did you mean loss.power?"),
    "a key without its table": ([], "[space]\nkappa = {low = 1, high = 2}\n", {}, "did you mean loss.kappa?"),
    "no number": ([], '[space.loss]\nkappa = {low = "1", high = 3}\n', {}, "kappa.low = '1': expected a number"),
    "true": ([], "[space.loss]\nkappa = {low = false, high = true}\n", {}, "kappa.low = False: expected a number"),
    "other data": ([], '[space.data]\ntrain = {choices = [["a.jsonl"], ["b.jsonl"]]}\n', {}, "a.jsonl"),
    "no trial": (["trials = 0"], SPACE, {}, "trials = 0; expected greater than or equal to 1"),
}


@pytest.mark.parametrize(("lines", "tables", "settings", "sentence"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(
    lines: list[str], tables: str, settings: Settings, sentence: str, write_study: WriteStudy, run: Run, tmp_path: Path
) -> None:
    answer = run("tune", write_study(*lines, tables=tables, settings=settings))
    assert answer.code == 2
    assert sentence in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "studies").exists()


def test_held_out_pairs_are_no_choice_of_training_data(
    write_study: WriteStudy, run: Run, preference_file: Path, tmp_path: Path
) -> None:
    choices = [[str(preference_file)], [str(tmp_path / "selecting.jsonl")]]
    answer = run("tune", write_study(tables=f"[space.data]\ntrain = {{choices = {choices}}}\n"))
    assert answer.code == 2
    assert "selecting.jsonl:1: its prompt is in the recipe's data.train too" in answer.err


def test_pairs_that_are_trained_on_are_refused(
    write_study: WriteStudy, run: Run, preference_file: Path, tmp_path: Path
) -> None:
    answer = run("tune", write_study(f'heldout = "{preference_file}"'))
    assert answer.code == 2
    assert f"{preference_file}:1: its prompt is in the recipe's data.train too" in answer.err
    assert "those of 40 more held-out pairs" in answer.err
    held = write_rows(tmp_path / "one.jsonl", [preference_rows(41, seed=0)[5], *preference_rows(4, seed=9)])
    answer = run("tune", write_study(f'heldout = "{held}"'))
    assert f"{held}:1: its prompt is in the recipe's data.train too ({preference_file}:6)" in answer.err


def test_overrides_are_for_the_study_or_its_recipe(write_study: WriteStudy, run: Run) -> None:
    study = write_study()
    assert "recipe.toml: loss.powr is not a setting" in run("tune", study, "recipe.loss.powr=2").err
    assert "trials = 'many'; expected a valid integer" in run("tune", study, "trials=many").err


NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        ({"num_workers": 0}, 7),
        ({"num_workers": 0, "cpus_per_worker": 2}, 3),  # 2 and 1, not 7 / 2
        ({"num_workers": 2}, 3),
        ({"num_workers": 2, "cpus_per_worker": 2}, 1),
        ({"num_workers": (1, 4)}, 7),
        ({"num_workers": 1, "use_gpu": True}, 1),
        ({"num_workers": 1, "use_gpu": True, "gpus_per_worker": 0.5}, 2),
        ({"num_workers": 0, "use_gpu": True, "gpus_per_worker": 0.3}, 3),
    ],
)
def test_as_many_trials_at_once_as_have_room(settings: dict[str, Any], trials: int) -> None:
    assert room(TrainingConfig(**settings), NODES) == trials


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_workers": 8}, r"training\.num_workers = 8 with 1 CPU each .* need 8 CPU, but the Ray cluster has 7"),
        ({"num_workers": 0, "cpus_per_worker": 5}, r"a trial takes .*'CPU': 5.* no node of the Ray cluster has that"),
        ({"num_workers": 2, "use_gpu": True}, r"need 2 GPU, but the Ray cluster has 1"),
    ],
)
def test_what_can_never_fit_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ClusterError, match=sentence):
        room(TrainingConfig(**settings), NODES)
