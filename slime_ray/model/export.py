"""final/: a Hugging Face folder that transformers and vLLM load, with adapter/ beside it under LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from slime_ray.model.lora import merge_lora


def export(
    model: PreTrainedModel | peft.PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    end_of_turn_id: int,
    card: str,
) -> None:
    """Write the merged model, its tokenizer with chat template, a generation config that stops at the end of a turn,
    and the model card; under LoRA the adapter as well. The model is not usable for training afterwards."""
    if isinstance(model, peft.PeftModel):
        model.save_pretrained(str(folder / "adapter"))
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's empty template of a card
        model = merge_lora(model)
    model.config.use_cache = True
    model.generation_config = generation_config(model.generation_config, tokenizer, end_of_turn_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # safetensors lets nobody else read what it writes; whoever serves the model may be another user.
    mode = (folder / "README.md").stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def generation_config(
    own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, end_of_turn_id: int
) -> GenerationConfig:
    """The model's own generation config with the end-of-turn token among those that stop it.

    A base model with an instruct template never stops without it.
    """
    settings: dict[str, Any] = own.to_diff_dict() if own else {}
    stops = settings.get("eos_token_id", tokenizer.eos_token_id)
    stops = [stop for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None]
    # Published configs often set these without do_sample, which transformers reads but refuses to write.
    if any(settings.get(key) is not None for key in ("temperature", "top_p", "top_k", "min_p", "typical_p")):
        settings["do_sample"] = True
    settings["eos_token_id"] = [*stops, end_of_turn_id] if end_of_turn_id not in stops else stops
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = pad_id(tokenizer, end_of_turn_id)
    return GenerationConfig.from_dict(settings)


def pad_id(tokenizer: PreTrainedTokenizerBase, end_of_turn_id: int) -> int:
    """What padding is filled with; it is masked, so any token serves."""
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end_of_turn_id
