"""Data, models, templates and recipes are read from S3 as from a disk, with the same hashes and the URL in messages."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from slime_ray.copies import upload
from slime_ray.data.sources import content_hash, read_rows
from slime_ray.errors import ConfigError, DataError, ModelError
from slime_ray.overrides import load_recipe, load_study
from slime_ray.pipeline.recipes import load as load_pipeline
from slime_ray.serving.candidate import find as find_candidate
from slime_ray.serving.sources import recipe_of
from slime_ray.serving.sources import resolve as resolve_served
from slime_ray.storage import place, write_bytes, write_text
from slime_ray.training.stage import chat_format, resolve
from tests.command_line import Run as Command
from tests.conftest import preference_rows

WriteRecipe = Callable[..., Path]
ROWS: list[dict[str, Any]] = preference_rows(30, seed=0)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "pairs.jsonl": lines(ROWS),
    "pairs.json": json.dumps(ROWS, indent=1).encode(),
    "pairs.jsonl.gz": gzip.compress(lines(ROWS)),
    "pairs.parquet": parquet(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_on_a_disk(name: str, bucket: str, tmp_path: Path) -> None:
    url, here = f"{bucket}/data/{name}", tmp_path / name
    write_bytes(place(url), FILES[name])
    here.write_bytes(FILES[name])
    assert content_hash([url]) == content_hash([str(here)])
    found, expected = list(read_rows(url)), list(read_rows(str(here)))
    assert [row.fields for row in found] == [row.fields for row in expected] == ROWS
    assert [row.source for row in found] == [row.source.replace(str(here), url) for row in expected]


def test_a_folder_is_read_in_the_order_of_its_names(bucket: str, tmp_path: Path) -> None:
    for number, name in enumerate(["b.jsonl", "a.jsonl", "notes.txt", ".hidden.jsonl", "deep/c.jsonl"]):
        data = lines([{"number": number}])
        write_bytes(place(f"{bucket}/data/{name}"), data)
        write_bytes(tmp_path / name, data)
    for url in (f"{bucket}/data", f"{bucket}/data/"):
        assert [row.fields["number"] for row in read_rows(url)] == [1, 0]
        assert content_hash([url]) == content_hash([str(tmp_path)])


def test_what_is_wrong_is_told_with_the_url(bucket: str, tmp_path: Path) -> None:
    write_text(place(f"{bucket}/data/broken.jsonl"), '{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=f"^{bucket}/data/broken.jsonl:2: broken JSON"):
        list(read_rows(f"{bucket}/data/broken.jsonl"))
    with pytest.raises(DataError, match=f"^{bucket}/data/absent.jsonl: there is no such file or folder$"):
        content_hash([f"{bucket}/data/absent.jsonl"])
    write_bytes(place(f"{bucket}/data/cut.jsonl.gz"), FILES["pairs.jsonl.gz"][:-20])
    with pytest.raises(DataError, match=f"^{bucket}/data/cut.jsonl.gz: not a whole gzip file"):
        list(read_rows(f"{bucket}/data/cut.jsonl.gz"))
    write_bytes(place(f"{bucket}/data/no.parquet"), b"no")
    with pytest.raises(DataError, match=f"^{bucket}/data/no.parquet: not a readable Parquet file"):
        list(read_rows(f"{bucket}/data/no.parquet"))
    with pytest.raises(ModelError, match="no such folder; expected one with a Hugging Face model"):
        resolve(recipe_with(f"{bucket}/data/absent", f"{bucket}/data/broken.jsonl"))


def recipe_with(model: str, data: str) -> Any:
    from slime_ray.config.recipe import Recipe

    return Recipe.model_validate({"name": "x", "model": {"name": model}, "data": {"train": [data]}})


def test_a_run_has_the_hash_of_its_content_wherever_that_lies(
    bucket: str, tiny_model: Path, preference_file: Path, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{{ eos_token }}{% endfor %}")
    here = resolve(
        load_recipe(write_recipe({"model.tokenizer": str(tiny_model), "model.chat_template": str(template)}))
    )
    upload(tiny_model, place(f"{bucket}/model"))
    write_bytes(place(f"{bucket}/pairs.jsonl"), preference_file.read_bytes())
    write_bytes(place(f"{bucket}/chat.jinja"), template.read_bytes())
    settings = {
        "model.name": f"{bucket}/model",
        "model.tokenizer": f"{bucket}/model",
        "model.chat_template": f"{bucket}/chat.jinja",
        "data.train": [f"{bucket}/pairs.jsonl"],
    }
    there = resolve(load_recipe(write_recipe(settings, file="there.toml")))
    assert (there.data_hash, there.model_hash) == (here.data_hash, here.model_hash)
    assert there.run.hash == here.run.hash
    assert chat_format(there).tokenizer.chat_template == template.read_text()


def test_a_model_is_served_from_its_url(bucket: str, tiny_model: Path) -> None:
    upload(tiny_model, place(f"{bucket}/models/tiny"))
    recipe = recipe_of([f"{bucket}/models/tiny"])
    assert list(recipe.models) == ["tiny"]
    found = find_candidate("tiny", recipe.models["tiny"], runs_dir=place("runs"))
    assert Path(found.location).is_dir()
    assert (Path(found.location) / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert found.label == "tiny"


def test_an_engine_on_another_node_has_the_files_too(bucket: str, tiny_model: Path) -> None:
    from slime_ray.serving.engine import LocalFiles, engine_deployment
    from slime_ray.training.cluster import at_hand

    upload(tiny_model, place(f"{bucket}/models/tiny"))
    recipe = recipe_of([f"{bucket}/models/tiny"])
    (served,) = resolve_served(recipe, say=lambda _: None)
    with at_hand():
        given: Any = engine_deployment(served, recipe)._bound_deployment.init_kwargs
    config = given["llm_config"]
    assert config.callback_config.callback_class is LocalFiles
    shutil.rmtree(served.location)  # as on a node that has not looked yet
    callback = LocalFiles(config, ctx_kwargs={}, **config.callback_config.callback_kwargs)
    asyncio.run(callback.on_before_node_init())
    assert (Path(served.location) / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()


RECIPE = """
model.name = "{model}"
data.train = ["{data}"]
training.num_workers = 0
training.max_steps = 1
"""


def test_recipes_name_each_other_relative_to_their_url(bucket: str) -> None:
    folder = place(f"{bucket}/recipes")
    write_text(folder / "train" / "slime.toml", RECIPE.format(model="org/name", data="pairs.jsonl"))
    write_text(
        folder / "serve.toml",
        f'[models.slime]\nsource = "run:slime"\n[models.other]\nsource = "{bucket}/models/other"\n',
    )
    write_text(
        folder / "evaluate.toml",
        f'questions.path = "bundled"\n[models.slime]\nbase_url = "http://127.0.0.1:8000/v1"\n'
        f'[models.file]\nanswers = "{bucket}/answers.jsonl"\n',
    )
    write_text(
        folder / "pipeline.toml",
        'train = ["train/slime.toml"]\nserve = "serve.toml"\nevaluate = "evaluate.toml"\n',
    )
    recipes = load_pipeline(f"{bucket}/recipes/pipeline.toml", ["train.training.seed=7"])
    assert [(recipe.name, recipe.training.seed) for recipe in recipes.train] == [("slime", 7)]
    assert list(recipes.serve.models) == ["slime"]
    assert recipes.served == {"slime": "slime"}

    write_text(
        folder / "studies" / "study.toml",
        'recipe = "../train/slime.toml"\nheldout = "test.jsonl"\nspace.loss.kappa = {low = 1.0, high = 2.0}\n'
        'judge = {serve = "../serve.toml", evaluate = "../evaluate.toml"}\n',
    )
    study = load_study(f"{bucket}/recipes/studies/study.toml")
    assert study.recipe == f"{bucket}/recipes/train/slime.toml"
    assert study.judge is not None
    assert study.judge.serve == f"{bucket}/recipes/serve.toml"
    assert load_recipe(study.recipe).name == "slime"
    with pytest.raises(ConfigError, match=f"^{bucket}/recipes/absent.toml: no such recipe; expected a TOML file$"):
        load_recipe(f"{bucket}/recipes/absent.toml")


def test_the_command_line_takes_urls(
    bucket: str, tiny_model: Path, preference_file: Path, run: Command, tmp_path: Path
) -> None:
    upload(tiny_model, place(f"{bucket}/model"))
    write_bytes(place(f"{bucket}/pairs.jsonl"), preference_file.read_bytes())
    write_text(
        place(f"{bucket}/recipes/x.toml"),
        RECIPE.format(model=f"{bucket}/model", data=f"{bucket}/pairs.jsonl") + f'runs_dir = "{bucket}/runs"\n',
    )
    shown = run("inspect", f"{bucket}/pairs.jsonl", "--recipe", f"{bucket}/recipes/x.toml", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["rows"] == 41
    planned = run("plan", f"{bucket}/recipes/x.toml")
    assert planned.code == 0, planned.err
    trained = run("train", f"{bucket}/recipes/x.toml")
    assert trained.code == 0, trained.err
    assert trained.out.startswith(f"{bucket}/runs/x-")
    scored = run(
        "score",
        "run:x",
        "--data",
        f"{bucket}/pairs.jsonl",
        "--runs-dir",
        f"{bucket}/runs",
        "--json",
        "--max-new-tokens",
        "0",
    )
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)[0]["sources"][0] == f"{bucket}/pairs.jsonl:1"
    for command in (["runs", "--runs-dir", f"{bucket}/runs"], ["show", "x", "--runs-dir", f"{bucket}/runs"]):
        told = run(*command)
        assert told.code == 0, told.err
        assert "x-" in told.out
        assert "finished" in told.out
    refused = run("train", "s3://test-absent/recipes/x.toml")
    assert (refused.code, refused.err) == (2, "error: s3://test-absent: there is no such bucket; make it\n")
