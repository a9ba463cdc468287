"""Adapters: which are served beside their base from one engine, which are merged, and that merging keeps the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slime_ray.errors import ModelError
from slime_ray.serving.adapters import why_merged
from slime_ray.serving.sources import recipe_of, resolve
from tests.served_runs import edit_json, train_run, write_base

RUNS = ("full", "first", "second", "head", "child", "grandchild")
LLAMA = ("LlamaForCausalLM",)
Dealt = dict[str, list[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and runs on top of it: trained in full, two adapters, an adapter with its head, an adapter of a run."""
    folder = tmp_path_factory.mktemp("served")
    write_base(folder)
    for name in RUNS:
        train_run(folder, f"tiny/{name}")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed; the working directory, with a cache of its own."""
    shutil.copytree(trained, tmp_path / "place")
    for run in tmp_path.glob("place/runs/tiny/*"):
        settings = json.loads((run / "config.json").read_bytes())
        if not settings["model"]["name"].startswith("run:"):
            edit_json(run / "config.json", model=settings["model"] | {"name": str(tmp_path / "place" / "base")})
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("SLIME_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "place"


class Answer:
    """What a command line came to."""

    def __init__(self, *sources: str, overrides: tuple[str, ...] = ()) -> None:
        self.said: list[str] = []
        self.served = resolve(recipe_of(sources, ["force=true", *overrides]), say=self.said.append)

    @property
    def dealt(self) -> Dealt:
        """The adapters of each engine, by the name of what it serves whole."""
        return {each.card.name: [adapter.card.name for adapter in each.adapters] for each in self.served}


def final(place: Path, name: str) -> Path:
    (found,) = place.glob(f"runs/tiny/{name}-*/final")
    return found


@pytest.mark.parametrize(
    ("sources", "dealt"),
    [
        (["tiny/first"], {"tiny/first": []}),
        (["tiny/first", "tiny/full"], {"tiny/first": [], "tiny/full": []}),
        (["tiny/first", "base"], {"base": ["tiny/first"]}),
        (["tiny/first", "tiny/second"], {"base": ["tiny/first", "tiny/second"]}),
        (["tiny/first", "tiny/head"], {"tiny/first": [], "tiny/head": []}),
        (["base", "tiny/head"], {"base": [], "tiny/head": []}),
        (["base", "tiny/child"], {"base": [], "tiny/child": []}),
        (["base", "tiny/child", "tiny/full", "tiny/second"], {"base": ["tiny/second"], "tiny/full": ["tiny/child"]}),
        (["base", "tiny/first", "tiny/grandchild"], {"base": [], "tiny/first": ["tiny/grandchild"]}),
    ],
)
def test_adapters_stand_beside_a_base_that_is_served_or_shared(place: Path, sources: list[str], dealt: Dealt) -> None:
    found = Answer(*sources)
    assert found.dealt == dealt
    for served in found.served:
        for adapter in served.adapters:
            assert adapter.folder == str(final(place, adapter.card.name.removeprefix("tiny/")) / "adapter")
            assert adapter.rank == (8 if adapter.card.name == "tiny/second" else 4)
        whole = served.card.name.removeprefix("tiny/")
        assert served.location == str(place / "base" if whole == "base" else final(place, whole))


def test_a_base_that_nobody_asked_for_is_told_of(place: Path) -> None:
    found = Answer("tiny/first", "tiny/second", overrides=("cpus=0.5",))
    assert found.said == ["serving base too, the base of tiny/first and tiny/second: their engine has it anyway"]
    assert found.served[0].settings.cpus == 0.5
    assert Answer("tiny/first").said == []


def test_a_run_is_the_same_to_an_evaluation_beside_its_base_and_merged(place: Path) -> None:
    (beside,), (merged,) = Answer("base", "tiny/first").served, Answer("tiny/first").served
    assert beside.adapters[0].card == merged.card


def test_an_adapter_with_a_head_is_merged_and_told_of(place: Path) -> None:
    (line,) = Answer("base", "tiny/head").said
    assert line.startswith("models.tiny/head: served merged, not as an adapter beside base: ")
    assert line.endswith("vLLM has no place for what was trained in full: lm_head")


def other_weights(place: Path) -> None:
    weights = load_file(place / "base" / "model.safetensors")
    save_file({name: tensor + 1.0 for name, tensor in weights.items()}, place / "base" / "model.safetensors")


def other_template(place: Path) -> None:
    template = place / "base" / "chat_template.jinja"
    template.write_text("Hello. " + template.read_text())


@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        (lambda place: None, ('models."tiny/first".cpus=2',), "asks for another engine than that of models.base"),
        (other_weights, (), "its base is not as it was"),
        (other_template, (), "chat template is not its base's"),
        (lambda place: edit_json(place / "base" / "generation_config.json", eos_token_id=7), (), "stop after token 1"),
        (lambda place: edit_json(place / "base" / "config.json", architectures=["X"]), (), "trained as LlamaForCausal"),
    ],
)
def test_an_adapter_that_its_base_would_serve_otherwise_is_merged(
    place: Path, change: Callable[[Path], Any], overrides: tuple[str, ...], words: str
) -> None:
    change(place)
    found = Answer("base", "tiny/first", overrides=overrides)
    assert found.dealt == {"base": [], "tiny/first": []}
    (line,) = found.said
    assert line.startswith("models.tiny/first: served merged, not as an adapter beside base: ")
    assert words in line


def test_a_run_whose_base_is_gone_or_was_trained_again_is_merged(place: Path) -> None:
    again = train_run(place, "tiny/full", **{"training.learning_rate": 1e-3})
    assert Answer("tiny/full", "tiny/child").dealt == {"tiny/full": ["tiny/child"]}
    manifest = again.manifest()
    assert manifest is not None
    later = manifest.model_copy(update={"finished": "9999-01-01T00:00:00+00:00"})
    later.write(again.folder / "manifest.json")
    found = Answer("tiny/full", "tiny/child")
    assert found.dealt == {"tiny/full": [], "tiny/child": []}
    assert "its base was trained again since" in found.said[0]
    shutil.rmtree(place / "base")
    assert Answer("tiny/first", "tiny/second").dealt == {"tiny/first": [], "tiny/second": []}


@pytest.mark.parametrize(
    ("changes", "architectures", "words"),
    [
        ({}, LLAMA, None),
        ({"use_rslora": True, "lora_dropout": 0.1, "layers_to_transform": [0]}, LLAMA, None),
        ({"r": 512}, LLAMA, None),
        ({"r": 513}, LLAMA, "its rank is 513, vLLM has at most 512"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, LLAMA, "trained in full: lm_head, embed_tokens"),
        ({"use_dora": True}, LLAMA, "use_dora = True"),
        ({"bias": "lora_only"}, LLAMA, "bias = 'lora_only'"),
        ({"peft_type": "LOHA"}, LLAMA, "peft_type = 'LOHA'"),
        ({"init_lora_weights": "pissa"}, LLAMA, "init_lora_weights = 'pissa'"),
        ({"alpha_pattern": {"q_proj": 1}}, LLAMA, "alpha_pattern"),
        ({"of_a_later_peft": {"x": 1}}, LLAMA, "of_a_later_peft"),
        ({}, ("GPT2LMHeadModel",), "GPT2LMHeadModel"),
        ({}, ("Phi3ForCausalLM",), "vLLM takes no adapter of"),
    ],
)
def test_what_vllm_serves_as_an_adapter(
    place: Path, changes: dict[str, Any], architectures: tuple[str, ...], words: str | None
) -> None:
    adapter = final(place, "first") / "adapter"
    edit_json(adapter / "adapter_config.json", **changes)
    found = why_merged(adapter, architectures=architectures)
    assert found is None if words is None else words in str(found)


def foreign(place: Path, **config: Any) -> Path:
    """An adapter as peft saves it, whose weights are far from nothing; of a DoRA too, if `config` says so."""
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | config
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(place / "theirs"))
    return place / "theirs"


def test_a_foreign_adapter_is_served_beside_its_base(place: Path) -> None:
    folder = foreign(place)
    found = Answer("theirs")
    assert found.dealt == {"base": ["theirs"]}
    assert found.served[0].adapters[0].folder == str(folder)
    assert Answer("base", "theirs", "tiny/first").dealt == {"base": ["theirs", "tiny/first"]}


@torch.no_grad()
def test_a_foreign_adapter_that_vllm_cannot_serve_is_merged_once(place: Path, tmp_path: Path) -> None:
    folder = foreign(place, use_dora=True)
    found = Answer("base", "theirs")
    assert found.dealt == {"base": [], "theirs": []}
    assert "use_dora = True" in found.said[0]
    location = Path(found.served[1].location)
    assert location.is_relative_to(tmp_path / "cache" / "merged")
    ids_SL = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    base: Any = AutoModelForCausalLM.from_pretrained(place / "base")
    merged: Any = AutoModelForCausalLM.from_pretrained(location)
    plain = base(input_ids=ids_SL).logits
    expected = peft.PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids_SL).logits
    assert (plain - expected).abs().max() > 0.1
    torch.testing.assert_close(merged(input_ids=ids_SL).logits, expected, rtol=0, atol=1e-4)
    for file in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (location / file).is_file()
    written = (location / "model.safetensors").stat().st_mtime_ns
    again = Answer("base", "theirs")
    assert (location / "model.safetensors").stat().st_mtime_ns == written
    assert [line for line in again.said if "merging" in line] == []


def test_a_foreign_adapter_keeps_its_own_template(place: Path) -> None:
    folder = foreign(place)
    for path in (place / "base").glob("*token*"):
        shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = Answer("theirs")
    assert found.dealt == {"theirs": []}
    assert (Path(found.served[0].location) / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=None), "is missing"),
        (lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="gone"), "cannot be used"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cut short or damaged"),
    ],
)
def test_a_foreign_adapter_that_is_not_whole_is_refused(
    place: Path, harm: Callable[[Path], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    harm(foreign(place))
    with pytest.raises(ModelError, match=words):
        Answer("theirs")
