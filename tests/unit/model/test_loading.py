"""Refusing a tokenizer that was made for another model, also where it has no more tokens than the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from slime_ray.config.model import ModelConfig
from slime_ray.errors import ModelError
from slime_ray.model.loading import check_vocabulary, load_config
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
