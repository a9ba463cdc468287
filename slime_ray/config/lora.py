"""`[lora]`: low-rank adapters; without this section all weights are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slime_ray.config.section import Section


class LoraConfig(Section):
    """Adapters as peft understands them, with the paper's rank and scaling."""

    r: int = Field(default=64, ge=1)
    alpha: float = Field(default=128, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: str | list[str] = Field(default="all-linear", description="module names, a regex, or all-linear")
    modules_to_save: list[str] = Field(default=[], description="modules trained and saved in full, such as lm_head")
