"""`[model]`: what is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slime_ray.config.section import PLACE, READS, Section


class ModelConfig(Section):
    """A causal language model in Hugging Face format, its tokenizer and chat template."""

    name: str = Field(
        json_schema_extra=PLACE | READS,
        description="run:NAME (the newest finished run of that recipe), a folder, or a hub name[@revision]",
    )
    tokenizer: str | None = Field(
        default=None, json_schema_extra=PLACE | READS, description="folder or hub name; default: the model's own"
    )
    chat_template: str | None = Field(
        default=None, json_schema_extra=PLACE | READS, description="a Jinja file; default: the tokenizer's own"
    )
    dtype: Literal["auto", "float32", "float64"] = Field(
        default="auto",
        description="of the weights that are trained; auto is float32, computed in bfloat16 where the GPU has it",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa",
        json_schema_extra=PLACE,
        description="sdpa packs where the family allows it; flash_attention_2 pads and needs a GPU and flash-attn",
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="set on every dropout of the model's config")
