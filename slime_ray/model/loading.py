"""Loading a causal language model from a Hugging Face folder or hub name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_flash_attn_2_available

from slime_ray.config.model import ModelConfig
from slime_ray.copies import local_name
from slime_ray.errors import ConfigError, ModelError
from slime_ray.model.attention import FLASH, PACKABLE
from slime_ray.model.attention import NAME as OUR_ATTENTION
from slime_ray.model.source import ModelSource

# Bars and reports would stand between the lines of a log; what is wrong with a checkpoint is said below, in a sentence.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

DTYPES = {"auto": torch.float32, "float32": torch.float32, "float64": torch.float64}


# What transformers raises where a folder's files are not what they should be.
_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


# What stands before the names of a text part's weights in a larger model's checkpoint, as a pattern.
_PART = {r"^(?:model\.)?(?:language_model|text_model)\.": ""}


@dataclass(frozen=True)
class _Causal:
    """The config of a causal language model, and whether it is a part of a larger model, such as one that sees."""

    config: PreTrainedConfig
    is_part: bool


def load_config(source: ModelSource, settings: ModelConfig) -> PreTrainedConfig:
    """The causal language model's config with every dropout set to `model.dropout`, no other noise, and nothing kept
    between steps. Of a model that sees or hears it is the text part's.

    Raises:
        ModelError: there is no such model, its folder holds no usable config, or it is none that can be trained here.
    """
    return _load_causal(source, settings).config


def load_model(source: ModelSource, settings: ModelConfig) -> PreTrainedModel:
    """The weights, in the dtype that is trained, on CPU; of a model that sees or hears the text part's.

    Raises:
        ModelError: the folder is no model that can be trained here, or weights are missing in it.
    """
    causal = _load_causal(source, settings)
    dtype = DTYPES[settings.dtype]
    options: dict[str, Any] = {"key_mapping": _PART} if causal.is_part else {}
    if dtype == torch.float64:
        options["experts_implementation"] = "eager"  # torch's grouped product knows no float64
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            local_name(source.location),
            revision=source.revision,
            config=causal.config,
            dtype=dtype,
            attn_implementation=_attention(causal.config, settings),
            ignore_mismatched_sizes=True,  # reported below, in one sentence
            output_loading_info=True,
            **options,
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
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # a checkpoint with a head of its own has it, whatever its config says
    if causal.is_part:
        del model._weight_conversions  # else it would be saved under the names that it had as a part
    return model


def empty_model(source: ModelSource, settings: ModelConfig) -> PreTrainedModel:
    """The model's shape without any memory, for counting its parameters and what a step takes."""
    config = load_config(source, settings)
    # In the place of flash_attention_2 one that holds as much, and needs no GPU.
    asked = _of_transformers(config, "sdpa") if settings.attention == FLASH else _attention(config, settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[settings.dtype], attn_implementation=asked)


def check_positions(config: PreTrainedConfig, longest: int, settings: ModelConfig) -> None:
    """Refuse sequences that have more tokens than the model has positions.

    Args:
        config: the model's.
        longest: tokens of the longest sequence, prompt and completion together.
        settings: what the model is called.

    Raises:
        ConfigError: the longest sequence does not fit.
    """
    text: Any = config.get_text_config()
    # Also with scaled rotary embeddings: this is the length after scaling. Other families have names of their own for
    # it, which transformers maps to this one, or no limit.
    limit = getattr(text, "max_position_embeddings", None)
    counted = "positions"
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Beyond it the longest sequence of a micro-batch decides how the positions of all are embedded.
        original = rope.get("original_max_position_embeddings", getattr(text, "original_max_position_embeddings", None))
        limit, counted = original or limit, f"positions without its {rope['rope_type']} scaling, which is not used here"
    if limit is not None and longest > limit:
        raise ConfigError(
            f"data.max_length: the longest sequence has {longest:,} tokens, but the model {settings.name!r} has "
            f"{limit:,} {counted}; set data.max_length to {limit} or less"
        )


def _load_causal(source: ModelSource, settings: ModelConfig) -> _Causal:
    try:
        whole = AutoConfig.from_pretrained(local_name(source.location), revision=source.revision)
    except _UNREADABLE as error:
        raise ModelError(f"model.name = {settings.name!r}: {_first_line(error)}") from None
    part: Any = getattr(whole, "text_config", None)
    is_part = type(part) in MODEL_FOR_CAUSAL_LM_MAPPING
    config: Any = part if is_part else whole
    _check_trainable(whole, config, settings)
    _check_files(Path(local_name(source.location)), settings)
    if is_part:
        # The whole model is tied by its own config, whatever its part's says.
        config.tie_word_embeddings = getattr(whole, "tie_word_embeddings", config.tie_word_embeddings)
    for key in config.to_dict():
        if key.endswith(("dropout", "pdrop", "dropout_prob")) and not key.startswith("classifier"):
            setattr(config, key, settings.dropout)
        elif key.endswith(("jitter_noise", "layerdrop")):  # other noise than dropout, of experts and of layers
            setattr(config, key, 0.0)
        elif key == "output_router_logits":  # with them a loss of the experts' balance, which is no part of ours
            config.output_router_logits = False
    config.use_cache = False
    return _Causal(config, is_part)


def _check_files(folder: Path, settings: ModelConfig) -> None:
    """Refuse a folder with safetensors files that are missing or end too early; what is on a hub is not looked at."""
    found, whole = f"model.name = {settings.name!r}", "expected a whole checkpoint; copy or download it again"
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ModelError(f"{found}: {index.name} is not the index of a checkpoint; {whole}") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{found}: {len(missing)} of {len(names)} files that {index.name} names are not there, {missing[0]} "
                f"first; {whole}"
            )
    for name in names:
        if (folder / name).is_file():
            try:
                with safe_open(folder / name, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ModelError(f"{found}: {name} is cut short or damaged ({_first_line(error)}); {whole}") from None


def _check_trainable(whole: PreTrainedConfig, config: PreTrainedConfig, settings: ModelConfig) -> None:
    """Refuse what transformers may load, but what is no causal language model with weights that can be trained."""
    found, kind = f"model.name = {settings.name!r}", config.model_type
    for part in (whole, config):
        quantization: Any = getattr(part, "quantization_config", None)
        if quantization is not None:
            method = quantization.get("quant_method", "without a quant_method")
            raise ModelError(
                f"{found}: its weights are quantised ({method}), so they cannot be trained; expected the model that it "
                "was made from, in bfloat16, float16 or float32"
            )
    if config.is_encoder_decoder:
        raise ModelError(f"{found}: {kind!r} is an encoder with a decoder; expected a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{found}: {kind!r} is no causal language model and has none as its text part; expected a model that "
            "transformers' AutoModelForCausalLM loads"
        )
    # What predicts masked words sees the words to the right; transformers makes a decoder of it only if told so.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{found}: {kind!r} is an encoder, whose tokens see those after them; expected a causal language model"
        )


def _attention(config: PreTrainedConfig, settings: ModelConfig) -> str:
    """By what name transformers knows the attention: ours where a family is known to allow it, eager where sdpa would
    leave something out.

    Raises:
        ModelError: flash_attention_2 is asked for and cannot be had.
    """
    if settings.attention == "sdpa" and config.model_type in PACKABLE:
        return OUR_ATTENTION
    if settings.attention == FLASH:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        reasons = {
            f"the model type {config.model_type!r} does not have it": not kind._supports_flash_attn,
            "it knows no float64": settings.dtype == "float64",
            "torch finds no GPU on this machine": not torch.cuda.is_available(),
            "the package flash-attn is not installed": not is_flash_attn_2_available(),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason:
            raise ModelError(f"model.attention = {FLASH!r}: {reason}; set it to sdpa")
        return FLASH
    return _of_transformers(config, settings.attention)


def _of_transformers(config: PreTrainedConfig, asked: str) -> str:
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return asked if kind._supports_sdpa else "eager"


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
