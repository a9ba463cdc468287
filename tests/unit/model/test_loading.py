"""Refusing a checkpoint that is not whole, and a tokenizer that was made for another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from slime_ray.config.model import ModelConfig
from slime_ray.errors import ModelError
from slime_ray.model.loading import check_vocabulary, load_config, load_model
from slime_ray.model.source import find_model
from slime_ray.quickstart.models import make_llama, make_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(["one two three"] * 9, vocabulary=280)
    make_llama(tokenizer, layers=1, hidden=16, heads=2, tied=True, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check(model: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source, settings = find_model(str(model), runs_dir=model), ModelConfig(name=str(model), tokenizer="other")
    check_vocabulary(load_config(source, settings), tokenizer, source, settings)


def test_the_models_own_tokenizer_may_be_named(model: Path) -> None:
    check(model, make_tokenizer(["one two three"] * 9, vocabulary=280))


def test_a_tokenizer_that_numbers_tokens_otherwise_is_refused(model: Path) -> None:
    other = make_tokenizer(["three one two, one two"] * 9, vocabulary=270)
    with pytest.raises(
        ModelError, match=r"model\.tokenizer: 'other' has .* expected the model's own tokenizer, or one"
    ):
        check(model, other)


def changed(model: Path, folder: Path, **config: object) -> Path:
    """A copy of the model with other values in its config.json."""
    shutil.copytree(model, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2}, r"9 weights of its config are missing in the checkpoint, model\.layers\.1\."),
        (
            {"intermediate_size": 64},
            r"3 weights of its config are of another shape in the checkpoint, model\.layers\.0\.",
        ),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_never_made_up(
    model: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    settings = ModelConfig(name=str(changed(model, tmp_path / "model", **config)))
    with pytest.raises(ModelError, match=message):
        load_model(find_model(settings.name, runs_dir=tmp_path), settings)


def test_a_truncated_weights_file_is_refused(model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    settings = ModelConfig(name=str(folder))
    with pytest.raises(ModelError, match=r"model\.name = "):
        load_model(find_model(settings.name, runs_dir=tmp_path), settings)
