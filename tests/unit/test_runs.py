"""The run folder: what its name stands for, what is in it, and how a recipe finds its parent."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_ray import runs as runs_module
from slime_ray.config.recipe import Recipe
from slime_ray.errors import DataError, ModelError, RunError
from slime_ray.manifest import Lineage, Manifest
from slime_ray.model.source import find_model
from slime_ray.runs import Run, find_run, read_recipe
from slime_ray.storage import file_hash
from slime_ray.training.stage import resolve

NameOf = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is a model as far as names go."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    return path


@pytest.fixture
def name_of(tmp_path: Path, model: Path, data: Path) -> NameOf:
    """The name of the run that a recipe with some dotted settings stands for."""

    def name(settings: dict[str, Any] | None = None) -> str:
        values: dict[str, Any] = {"name": "r"}
        places = {"runs_dir": str(tmp_path / "runs"), "model.name": str(model), "data.train": [str(data)]}
        for key, value in (places | (settings or {})).items():
            table = values
            *sections, last = key.split(".")
            for section in sections:
                table = table.setdefault(section, {})
            table[last] = value
        return resolve(Recipe.model_validate(values)).run.name

    return name


def test_a_name_is_the_recipes_and_eight_hex_digits(name_of: NameOf) -> None:
    recipe, _, digits = name_of({"name": "llama/slime"}).rpartition("-")
    assert recipe == "llama/slime"
    assert len(digits) == 8
    assert int(digits, 16) >= 0
    assert name_of() == name_of()


@pytest.mark.parametrize(
    "settings",
    [
        {"training.num_workers": 0},
        {"training.num_workers": 8, "training.cpus_per_worker": 4, "training.use_gpu": True},
        {"training.num_workers": 1, "training.use_gpu": True, "training.gpus_per_worker": 0.25},
        {"training.tokens_per_micro_batch": 1},
        {"training.layout": "padded_left", "training.gradient_checkpointing": True, "training.compile": True},
        {"training.log_every": 7},
        {"model.attention": "eager"},
        # What is said is the default.
        {"training.learning_rate": 5e-7, "training.epochs": 1, "data.max_length": 2048},
        {"loss.kind": "slime", "loss.hard_margin": 1.5},
        {"data.split.seed": 0},
    ],
    ids=str,
)
def test_where_and_how_fast_is_not_in_the_name(name_of: NameOf, settings: dict[str, Any]) -> None:
    assert name_of(settings) == name_of()


@pytest.mark.parametrize(
    "settings",
    [
        {"training.learning_rate": 1e-6},
        {"training.pairs_per_step": 64},
        {"training.seed": 1},
        {"training.max_grad_norm": 1.0},
        {"loss.hard_margin": 2.0},
        {"loss.kind": "dpo"},
        {"data.max_length": 1024},
        {"data.max_prompt_length": 512},
        {"data.part": "preference"},
        {"data.limit": 10},
        {"data.split.seed": 1},
        {"model.dtype": "float64"},
        {"model.dropout": 0.1},
        {"lora": {}},
        {"lora.r": 8},
    ],
    ids=str,
)
def test_a_setting_that_changes_the_result_changes_the_name(name_of: NameOf, settings: dict[str, Any]) -> None:
    assert name_of(settings) != name_of()


def test_different_settings_give_different_names(name_of: NameOf) -> None:
    changes = [{}, {"lora": {}}, {"lora.r": 8}, {"loss.kind": "dpo"}, {"loss.kind": "simpo"}, {"loss.kappa": 3}]
    assert len({name_of(change) for change in changes}) == len(changes)


def test_files_stand_in_the_name_by_their_content(name_of: NameOf, data: Path, model: Path, tmp_path: Path) -> None:
    before = name_of()
    renamed = data.rename(tmp_path / "other.jsonl")
    moved = model.rename(tmp_path / "elsewhere")
    places = {"data.train": [str(renamed)], "model.name": str(moved), "runs_dir": str(tmp_path / "other runs")}
    assert name_of(places) == before

    renamed.write_text(renamed.read_text().replace("c", "d"))
    changed = name_of(places)
    assert changed != before
    # Data held out is not data trained on.
    held_out = name_of(places | {"data.eval": [str(renamed)]})
    twice = name_of(places | {"data.train": [str(renamed), str(renamed)]})
    assert len({changed, held_out, twice}) == 3

    (moved / "model.safetensors").write_bytes(b"other weights")
    assert name_of(places) != changed
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    assert name_of(places | {"model.chat_template": str(template)}) != name_of(places)


def lineage(run: Run, **changes: Any) -> Lineage:
    values = {"name": run.name, "recipe": run.recipe, "hash": run.hash, "data": "d", "model": "m", "parent": None}
    return Lineage.model_validate(values | {"versions": {"torch": "1"}} | changes)


def finished(run: Run, recipe: Recipe, *, metrics: list[dict[str, float]] | None = None) -> Manifest:
    """Write a run that looks as if it had been trained."""
    run.begin(recipe, lineage(run))
    for line in metrics or []:
        run.log(line)
    run.final.mkdir()
    (run.final / "config.json").write_text("{}")
    return run.finish(lineage(run))


@pytest.fixture
def recipe(tmp_path: Path, model: Path, data: Path) -> Recipe:
    values = {"model": {"name": str(model)}, "data": {"train": [str(data)]}, "runs_dir": str(tmp_path / "runs")}
    return Recipe.model_validate(values)


def test_a_parent_is_in_the_name(name_of: NameOf, recipe: Recipe, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished(Run(runs, "sft", "1" * 64), recipe)
    first = name_of({"model.name": "run:sft"})
    assert first == name_of({"model.name": "run:sft-11111111"})
    finished(Run(runs, "sft", "2" * 64), recipe)
    assert name_of({"model.name": "run:sft"}) != first


def test_a_run_is_found_by_its_recipe_the_newest_finished_one(recipe: Recipe, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for digit in "3192":
        finished(Run(runs, "llama/sft", digit * 64), recipe)
        assert find_run(runs, "llama/sft").name == f"llama/sft-{digit * 8}"
    finished(Run(runs, "llama/sft-continued", "4" * 64), recipe)
    unfinished = Run(runs, "llama/sft", "5" * 64)
    unfinished.begin(recipe, lineage(unfinished))
    assert find_run(runs, "llama/sft").name == "llama/sft-22222222"
    assert find_run(runs, "llama/sft-11111111").hash == "1" * 64
    source = find_model("run:llama/sft", runs_dir=runs)
    assert (source.location, source.parent) == (str(runs / "llama/sft-22222222/final"), "llama/sft-22222222")
    assert source.hash == "2" * 64


def test_the_newest_run_is_known_under_a_clock_that_jumps_back(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digit, year in (("1", 2031), ("2", 2029), ("3", 2030)):
        jumped = SimpleNamespace(now=lambda zone, year=year: datetime(year, 1, 1, tzinfo=zone))
        monkeypatch.setattr(runs_module, "datetime", jumped)
        finished(Run(tmp_path, "sft", digit * 64), recipe)
    assert find_run(tmp_path, "sft").name == "sft-33333333"
    assert find_run(tmp_path, "sft").finished.startswith("2030")


def test_a_parent_that_is_not_there_or_not_finished_is_named(recipe: Recipe, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    expected = f"run:llama/sft: no finished run of this name in {runs}; "
    with pytest.raises(RunError) as error:
        find_run(runs, "llama/sft")
    assert str(error.value) == expected + "train that recipe first"
    unfinished = Run(runs, "llama/sft", "5" * 64)
    unfinished.begin(recipe, lineage(unfinished))
    with pytest.raises(RunError) as error:
        find_run(runs, "llama/sft")
    assert str(error.value) == expected + "sft-55555555 is not finished; train it to its end"
    # The folder that holds the runs of nested recipes is no run.
    with pytest.raises(RunError, match=r"train that recipe first$"):
        find_run(runs, "llama")


@pytest.mark.parametrize("name", ["", "/etc", "..", "../runs", "a//b", "a/"])
def test_a_name_that_no_run_has_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no name of a recipe or run"):
        find_run(tmp_path, name)


def test_a_name_is_no_pattern(recipe: Recipe, tmp_path: Path) -> None:
    finished(Run(tmp_path, "sft", "1" * 64), recipe)
    finished(Run(tmp_path, "[v2] sft", "1" * 64), recipe)
    assert find_run(tmp_path, "[v2] sft").recipe == "[v2] sft"
    for name in ("*", "s?t", "[s]ft"):
        with pytest.raises(RunError, match="no finished run"):
            find_run(tmp_path, name)


def test_a_run_that_was_begun_is_taken_up(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs", "sft", "1" * 64)
    run.begin(recipe, lineage(run))
    assert read_recipe(run) == recipe
    run.log({"step": 1, "loss": 0.5})
    run.begin(recipe, lineage(run))
    assert run.metrics() == [{"step": 1, "loss": 0.5}]
    assert run.events() == []


def test_what_lies_there_without_a_lineage_is_removed(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs", "sft", "1" * 64)
    (run.final / "adapter").mkdir(parents=True)
    (run.final / "adapter" / "half").write_text("")
    run.log({"step": 1, "loss": 1e9})
    run.begin(recipe, lineage(run))
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "lineage.json"]


def test_other_versions_warn(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs", "sft", "1" * 64)
    run.begin(recipe, lineage(run))
    run.begin(recipe, lineage(run, versions={"torch": "2"}))
    warning = run.events()[-1]
    assert (warning.kind, warning.message) == (
        "warning",
        "resumed under other versions, results may differ: torch 1 -> 2",
    )


def test_the_folder_of_another_run_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run, other = (Run(tmp_path, name, "1" * 64) for name in ("sft", "dpo"))
    run.begin(recipe, lineage(run))
    run.folder.rename(other.folder)
    with pytest.raises(RunError) as error:
        other.begin(recipe, lineage(other))
    assert str(error.value) == (
        f"{other.folder}: the folder of another run (sft-11111111, hash {'1' * 16}), not of dpo-11111111 "
        f"({'1' * 16}); move it away, or give this recipe another name"
    )


def test_metrics_are_read_as_they_were_logged(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    assert run.metrics() == []
    run.begin(recipe, lineage(run))
    lines = [{"step": 0, "eval_loss": 0.7}, {"step": 1, "loss": 0.1 + 0.2}]
    for line in lines:
        run.log(line)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')  # being written
    assert run.metrics() == lines


def test_the_manifest_makes_a_run_finished(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    run.begin(recipe, lineage(run))
    assert run.manifest() is None
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 3.0}]
    written = finished(run, recipe, metrics=metrics)
    assert run.manifest() == written
    assert (written.name, written.recipe, written.hash) == ("sft-11111111", "sft", "1" * 64)
    assert (written.data, written.model, written.parent) == ("d", "m", None)
    assert written.metrics == {"step": 2, "loss": 1.0, "eval_loss": 3.0}
    assert written.files == {"config.json": {"size": 2, "sha256": file_hash(run.final / "config.json")}}


def edited(manifest: Manifest, **changes: Any) -> str:
    return json.dumps(manifest.model_dump() | {"seal": "0"} | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: "{", "the file is no JSON"),
        (lambda _: "{}", "name: Field required"),
        (lambda _: "[]", "the file: Input should be a valid dictionary"),
        (lambda good: edited(good, more=1), "more: Extra inputs are not permitted"),
        (lambda good: edited(good), "it was changed after it was written"),
        (lambda good: edited(good, hash="2" * 64), "it was changed after it was written"),
    ],
)
def test_a_manifest_that_was_damaged_or_edited_is_named(
    recipe: Recipe, tmp_path: Path, content: Callable[[Manifest], str], message: str
) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    good = finished(run, recipe)
    path = run.folder / "manifest.json"
    path.write_text(content(good))
    with pytest.raises(RunError) as error:
        run.manifest()
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith("put the original back, or move its folder away and run the command again")
    with pytest.raises(RunError, match="manifest"):
        find_run(tmp_path, "sft")


def test_one_changed_number_in_a_manifest_is_seen(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    finished(run, recipe, metrics=[{"step": 1, "loss": 0.5}])
    path = run.folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"loss": 0.5', '"loss": 0.4'))
    assert path.read_text() != text
    with pytest.raises(RunError, match="changed after it was written"):
        run.manifest()


def test_a_run_whose_folder_was_renamed_is_no_parent(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    finished(run, recipe)
    run.folder.rename(tmp_path / "sft-22222222")
    with pytest.raises(RunError, match=r"sft-22222222: its manifest is that of sft-11111111; move the folder back"):
        find_run(tmp_path, "sft")


@pytest.mark.parametrize(("content", "found"), [(None, "is missing"), (b"{} ", "has 3 bytes")])
def test_a_parent_whose_model_is_incomplete_is_named(
    recipe: Recipe, tmp_path: Path, content: bytes | None, found: str
) -> None:
    run = Run(tmp_path, "sft", "1" * 64)
    finished(run, recipe)
    path = run.final / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError) as error:
        find_run(tmp_path, "sft")
    assert str(error.value).startswith(f"{path}: {found}, its run's manifest says 2; ")


def test_a_runs_folder_that_cannot_be_written_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match=r"^runs_dir = '.*runs': .*; expected a writable folder$"):
        Run(tmp_path / "runs", "sft", "1" * 64).make_runs_dir()


def test_models_and_data_that_are_not_there_are_named(name_of: NameOf, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"^model\.name = '.*empty': the folder has no config\.json"):
        name_of({"model.name": str(empty)})
    with pytest.raises(ModelError, match=r"^model\.chat_template = '.*absent\.jinja': no such file"):
        name_of({"model.chat_template": str(tmp_path / "absent.jinja")})
    with pytest.raises(DataError, match=r"absent\.jsonl: neither a file or folder here"):
        name_of({"data.train": [str(tmp_path / "absent.jsonl")]})
