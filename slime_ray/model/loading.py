"""Loading a causal language model from a Hugging Face folder or hub name."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from slime_ray.config.model import ModelConfig
from slime_ray.errors import ModelError
from slime_ray.model.source import ModelSource
from slime_ray.storage import local_name

# Bars and reports would stand between the lines of a log; what is wrong with a checkpoint is said below, in a sentence.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

DTYPES = {"auto": torch.float32, "float32": torch.float32, "float64": torch.float64}


# What transformers raises where a folder's files are not what they should be.
_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


def load_config(source: ModelSource, settings: ModelConfig) -> PreTrainedConfig:
    """The model's config with every dropout set to `model.dropout`, and nothing kept between steps.

    Raises:
        ModelError: there is no such model, or its folder holds no usable config.
    """
    try:
        config = AutoConfig.from_pretrained(local_name(source.location), revision=source.revision)
    except _UNREADABLE as error:
        raise ModelError(f"model.name = {settings.name!r}: {_first_line(error)}") from None
    for key in config.to_dict():
        if key.endswith(("dropout", "pdrop", "dropout_prob")) and not key.startswith("classifier"):
            setattr(config, key, settings.dropout)
    config.use_cache = False
    return config


def load_model(source: ModelSource, settings: ModelConfig) -> PreTrainedModel:
    """The weights, in the dtype that is trained, on CPU.

    Raises:
        ModelError: the folder is no model that transformers loads, or weights are missing in it.
    """
    config = load_config(source, settings)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            local_name(source.location),
            revision=source.revision,
            config=config,
            dtype=DTYPES[settings.dtype],
            attn_implementation=settings.attention,
            ignore_mismatched_sizes=True,  # reported below, in one sentence
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise ModelError(f"model.name = {settings.name!r}: {_first_line(error)}") from None
    model, report = loaded
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    for problem, names in (("missing in", report["missing_keys"]), ("of another shape in", mismatched)):
        if names:
            raise ModelError(
                f"model.name = {settings.name!r}: {len(names)} weights of its config are {problem} the checkpoint, "
                f"{min(names)} first; expected a whole checkpoint"
            )
    return model


def empty_model(source: ModelSource, settings: ModelConfig) -> PreTrainedModel:
    """The model's shape without any memory, for counting its parameters."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(source, settings))


def check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, source: ModelSource, settings: ModelConfig
) -> None:
    """Refuse a tokenizer that was made for another model.

    Raises:
        ModelError: it has tokens that the model has no embedding for, or numbers them otherwise than the tokenizer in
            the model's own folder, if there is one.
    """
    rows: Any = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ModelError(
            f"model.tokenizer: {settings.tokenizer or settings.name!r} has {len(tokenizer):,} tokens, but the model "
            f"{settings.name!r} has {rows:,} embeddings; expected the model's own tokenizer"
        )
    if settings.tokenizer is None:
        return
    try:
        own = AutoTokenizer.from_pretrained(local_name(source.location), revision=source.revision).get_vocab()
    except (OSError, ValueError, KeyError):
        return
    vocabulary = tokenizer.get_vocab()
    moved = [token for token, number in vocabulary.items() if own.get(token, number) != number]
    if moved:
        token = min(moved, key=own.__getitem__)
        raise ModelError(
            f"model.tokenizer: {settings.tokenizer!r} has {token!r} as number {vocabulary[token]:,}, in the model's "
            f"own tokenizer it is {own[token]:,} (and {len(moved) - 1:,} more differ); expected the model's own "
            "tokenizer, or one that only adds tokens"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
