"""From a command line or a recipe to checkpoints that can be served: what is found, its name, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_ray.config.serving import ServingRecipe
from slime_ray.errors import ConfigError, ModelError, RunError, ServingError, SlimeRayError
from slime_ray.runs import Run
from slime_ray.serving.certificate import Certificate, Likelihoods, Prompts, Stops
from slime_ray.serving.served import Served
from slime_ray.serving.sources import recipe_of, resolve
from slime_ray.storage import json_hash
from tests.evaluations import run_evaluation, write_evaluation
from tests.openai_server import OpenAIServer
from tests.served_runs import edit_json, train_run, write_base


class Place:
    """A folder with a base, a run on top of it, and an unfinished one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = write_base(folder)
        self.run: Run = train_run(folder, "tiny/full")
        begun = train_run(folder, "tiny/begun")
        (begun.folder / "manifest.json").unlink()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("served"))


@pytest.fixture
def place(trained: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed; the working directory."""
    shutil.copytree(trained.folder, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def serve() -> Callable[..., list[Served]]:
    """Resolve a command line; what is said is kept under `serve.said`."""

    def call(*sources: str, overrides: tuple[str, ...] = ()) -> list[Served]:
        said.clear()
        return resolve(recipe_of(sources, overrides), say=said.append)

    said: list[str] = []
    vars(call)["said"] = said
    return call


def full(place: Path) -> Path:
    """The run's folder."""
    (found,) = (place / "runs" / "tiny").glob("full-*")
    return found


def test_a_run_is_found_by_each_of_its_names(place: Path) -> None:
    name = f"tiny/{full(place).name}"
    for source in ("run:tiny/full", f"run:{name}", "tiny/full", name, f"runs/{name}", f"{place}/runs/{name}/final"):
        recipe = recipe_of([source])
        (served,) = resolve(recipe, say=lambda line: None)
        assert list(recipe.models) == ["tiny/full"] == [served.card.name]
        assert served.location == str(full(place) / "final")
        assert served.card.lineage["run"].startswith(f"{name}@")


def test_a_folder_that_is_there_goes_before_a_run_of_its_name(place: Path) -> None:
    shutil.copytree(place / "base", place / "tiny" / "full")
    (served,) = resolve(recipe_of(["tiny/full"]), say=lambda line: None)
    assert (served.card.name, served.location) == ("full", str(place / "tiny" / "full"))


def test_a_hub_name_is_served_under_it(place: Path) -> None:
    recipe = recipe_of(["some-org/Some-Model-1.5@refs"])
    assert {name: model.source for name, model in recipe.models.items()} == {
        "some-org/Some-Model-1.5": "some-org/Some-Model-1.5@refs"
    }


def test_overrides_go_to_one_model_to_all_or_to_the_endpoint(place: Path) -> None:
    overrides = ["cpus=0.5", 'models."tiny/full".cpus=0.25', "engine.max_num_seqs=4", "port=0", "limits.choices=2"]
    recipe = recipe_of(["base", "tiny/full"], overrides)
    assert {name: model.cpus for name, model in recipe.models.items()} == {"base": 0.5, "tiny/full": 0.25}
    assert {tuple(model.engine.items()) for model in recipe.models.values()} == {(("max_num_seqs", 4),)}
    assert (recipe.port, recipe.limits.choices) == (0, 2)


def test_runs_are_looked_for_in_the_runs_dir_of_an_override(place: Path) -> None:
    (place / "runs").rename(place / "elsewhere")
    recipe = recipe_of(["tiny/full"], ["runs_dir=elsewhere"])
    (served,) = resolve(recipe, say=lambda line: None)
    assert served.location.startswith(str(place / "elsewhere"))
    # A path tells by itself where its runs are kept.
    (served,) = resolve(recipe_of([served.location]), say=lambda line: None)
    assert served.card.lineage["parent"] is None
    assert served.card.lineage["data"] is not None


def test_a_recipe_is_read_with_its_overrides(place: Path) -> None:
    (place / "serve.toml").write_text('[models.mine]\nsource = "base"\n')
    assert recipe_of(["serve.toml"], ["models.mine.cpus=2", "port=1"]) == ServingRecipe.model_validate(
        {"name": "serve", "port": 1, "models": {"mine": {"source": "base", "cpus": 2}}}
    )


@pytest.mark.parametrize(
    ("sources", "overrides", "error", "words"),
    [
        ([], [], ConfigError, "nothing to serve"),
        (["serve.toml", "base"], [], ConfigError, "serve.toml, base: expected one recipe"),
        (["none.toml"], [], ConfigError, "no such recipe"),
        (["base", "again/base"], [], ConfigError, "'base' and 'again/base' would both be served as 'base'"),
        (["with space"], [], ConfigError, "with space"),
        (["base"], ["cpu=1"], ConfigError, "the command line: cpu is not a setting"),
        (["base"], ["cpus=0"], ConfigError, "models.base.cpus = 0"),
        (["base"], ["models.other.cpus=1"], ConfigError, "models.other.source is missing"),
        (["tiny/begun"], [], RunError, "is not finished"),
        (["run:tiny/none"], [], RunError, "no finished run"),
        (["moved"], [], RunError, "was moved; put it back"),
    ],
)
def test_a_command_line_is_refused_in_a_sentence(
    place: Path, sources: list[str], overrides: list[str], error: type[SlimeRayError], words: str
) -> None:
    shutil.copytree(place / "base", place / "again" / "base")
    shutil.copytree(place / "base", place / "with space")
    shutil.copytree(full(place), place / "moved")
    with pytest.raises(error) as found:
        recipe_of(sources, overrides)
    assert words in str(found.value)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def name_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in safetensors"),
        (cut_weights, "cut short or damaged"),
        (name_a_missing_shard, "model-00002-of-00002.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: no JSON"),
        (without_tokenizer, "tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_a_folder_that_no_chat_can_be_had_with_is_refused(
    place: Path, serve: Callable[..., list[Served]], harm: Callable[[Path], Any], words: str
) -> None:
    harm(place / "base")
    with pytest.raises(ModelError) as found:
        serve("base")
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_a_run_with_damaged_files_is_refused(place: Path, serve: Callable[..., list[Served]]) -> None:
    cut_weights(full(place) / "final")
    with pytest.raises(RunError, match="manifest says"):
        serve("tiny/full")


def test_a_template_may_come_from_another_tokenizer(place: Path, serve: Callable[..., list[Served]]) -> None:
    shutil.copytree(place / "base", place / "instruct")
    (place / "base" / "chat_template.jinja").unlink()
    (served,) = serve("base", overrides=("engine.tokenizer=instruct",))
    assert served.settings.engine["tokenizer"] == str(place / "instruct")


@pytest.mark.parametrize(
    ("said", "stored", "asked", "expected"),
    [
        ("bfloat16", torch.bfloat16, "own", "bfloat16"),
        (None, torch.float16, "own", "float16"),
        ("bfloat16", torch.bfloat16, "float32", "float32"),
        ("float64", torch.float64, "own", "float32"),
    ],
)
def test_the_dtype_is_the_stored_one_unless_asked_otherwise(
    place: Path, serve: Any, said: str | None, stored: torch.dtype, asked: str, expected: str
) -> None:
    weights = place / "base" / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(weights).items()}, weights)
    edit_json(place / "base" / "config.json", dtype=said)
    (served,) = serve("base", overrides=(f"dtype={asked}",))
    assert served.dtype == expected
    assert [line for line in serve.said if "float64" in line] == (
        ["models.base: stored in float64, which vLLM has not; served in float32"] if said == "float64" else []
    )


def test_the_dtype_of_a_text_part_counts(place: Path, serve: Callable[..., list[Served]]) -> None:
    edit_json(place / "base" / "config.json", dtype=None, text_config={"torch_dtype": "float16"})
    assert serve("base")[0].dtype == "float16"


def test_lineage_tells_other_weights_and_other_computations_apart(place: Path, serve: Any) -> None:
    def run(*overrides: str) -> str:
        found = serve("base", overrides=overrides)[0].card.lineage["run"]
        assert found.startswith("base@")
        return found

    plain = run()
    assert run("cpus=2", "max_ongoing=1") == plain
    assert len({plain, run("dtype=bfloat16"), run("engine.quantization=fp8")}) == 3
    weights = place / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][0, 0] += 1.0
    save_file(tensors, weights)
    assert run() != plain


def certify(folder: Path, *, passed: bool, files: str | None = None) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    Certificate(
        passed=passed,
        reasons=() if passed else ("the server computes with other weights",),
        run=manifest["name"],
        hash=manifest["hash"],
        files=files or json_hash(manifest["files"]),
        model="full",
        dtype="float32",
        data="data.train",
        prompts=Prompts(compared=1, mismatches=0, dated=0, skipped=0, first=None),
        likelihoods=Likelihoods(
            answers=2,
            tokens=4,
            skipped=0,
            not_finite=0,
            mean_difference=0.0,
            max_difference=0.0,
            mean_limit=None,
            max_limit=1e-3,
        ),
        stops=Stops(end_of_turn=1, listed=(1,), stopping=(1,), ordinary=5, ordinary_stops=False),
        server=None,
        versions={},
        made="",
    ).write(folder / "certificate.json")


def test_a_run_is_served_by_its_certificate(place: Path, serve: Any) -> None:
    name = f"tiny/{full(place).name}"

    def certificate(*overrides: str) -> str:
        return serve("tiny/full", overrides=overrides)[0].card.lineage["certificate"]

    assert certificate() == "missing"
    assert [f"slime-ray certify {name}" in line for line in serve.said] == [True]
    assert certificate("force=true") == "missing"
    assert serve.said == []
    certify(full(place), passed=False)
    with pytest.raises(ServingError, match=f"models.tiny/full: the run {name} failed its certificate"):
        certificate()
    assert certificate("force=true") == "failed"
    assert ["failed its certificate" in line for line in serve.said] == [True]
    certify(full(place), passed=False, files="0" * 64)
    assert certificate() == "missing"
    certify(full(place), passed=True)
    assert certificate() == "passed"
    assert serve.said == []


def test_lineage_has_the_scores_of_evaluations_that_judged_these_weights(place: Path, serve: Any) -> None:
    lineage = serve("tiny/full")[0].card.lineage
    with OpenAIServer({"a": lineage["run"], "b": "another", "j": None}) as server:
        folder, report = run_evaluation(write_evaluation(place, server.url))
    (judged,) = (model.overall for model in report.models if model.name == "a")
    assert serve("tiny/full")[0].card.lineage["evaluations"] == {
        "night": {"score": judged.value, "low": judged.low, "high": judged.high}
    }
    for file, change in [
        ("report.json", {"partial": "the budget is spent"}),
        ("evaluation.json", {"runs": {"a": "another", "b": lineage["run"][:-1]}}),
        ("evaluation.json", {"runs": "damaged"}),
    ]:
        before = (folder.path / file).read_bytes()
        edit_json(folder.path / file, **change)
        assert serve("tiny/full")[0].card.lineage["evaluations"] == {}
        (folder.path / file).write_bytes(before)


def test_a_command_line_is_read_without_ray_torch_or_vllm(place: Path) -> None:
    code = (
        "import sys; from slime_ray.serving.sources import recipe_of; recipe_of(['base', 'tiny/full'], ['port=0']); "
        "import slime_ray.cli.serving, slime_ray.serving.gateway.keys; print({'ray', 'torch', 'vllm'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
