"""Low-rank adapters by peft, and merging them back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import PreTrainedModel

from slime_ray.config.lora import LoraConfig
from slime_ray.errors import ConfigError


def add_lora(model: PreTrainedModel, settings: LoraConfig) -> peft.PeftModel:
    """Wrap a model: its weights are frozen, the adapters and `modules_to_save` are trained.

    Raises:
        ConfigError: target_modules match nothing, or match the output head.
    """
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        bias=settings.bias,
        target_modules=settings.target_modules,
        modules_to_save=settings.modules_to_save or None,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in settings.modules_to_save:
        if name.rpartition(".")[2] not in leaves:
            raise ConfigError(f"lora.modules_to_save: {name!r} is no module of this model; it has {_linear(model)}")
    try:
        with _handled_here():
            wrapped = peft.PeftModelForCausalLM(model, config)
    except re.error as error:
        raise ConfigError(
            f"lora.target_modules = {settings.target_modules!r} is no regular expression: {error}"
        ) from None
    except (ValueError, NoMatchingPeftModuleError) as error:
        if not isinstance(error, NoMatchingPeftModuleError) and "target modules" not in str(error).lower():
            raise
        raise ConfigError(
            f"lora.target_modules = {settings.target_modules!r} match no module; this model has {_linear(model)}"
        ) from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "lora.target_modules match the output head; the head is trained in full: name it in lora.modules_to_save"
        )
    return wrapped


def merge_lora(model: peft.PeftModel) -> PreTrainedModel:
    """The plain model with the adapters added to its weights and the modules that were trained in full in place."""
    head: Any = model.get_output_embeddings()
    if isinstance(model.get_input_embeddings(), BaseTunerLayer) and not isinstance(head, ModulesToSaveWrapper):
        # An adapter of the input embeddings is no part of the head, which may share their weight.
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    with _handled_here():
        merged: Any = model.merge_and_unload()
    if merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight:
        # The head no longer is the input embedding: both have to be saved.
        merged.config.tie_word_embeddings = False
    return merged


@contextmanager
def _handled_here() -> Iterator[None]:
    """Keep peft's warnings about tied embeddings from the user: `merge_lora` unties what was trained apart."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(tie_word_embeddings|no longer tied)")
        # Of transformers, at a call that peft makes.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _linear(model: PreTrainedModel) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    return ", ".join(sorted(names))
