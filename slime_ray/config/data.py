"""`[data]`: which rows, how they are split, and how long they may be."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from slime_ray.config.section import PLACE, Section


class SplitConfig(Section):
    """Disjoint parts by prompt: a prompt and all its pairs fall into one part; what is left is the held-out part."""

    sft: float = Field(default=0.33, ge=0.0, le=1.0)
    preference: float = Field(default=0.66, ge=0.0, le=1.0)
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_no_overlap(self) -> Self:
        if self.sft + self.preference > 1.0 + 1e-9:
            raise ValueError(f"sft + preference is {self.sft + self.preference:g}, expected at most 1")
        return self


class DataConfig(Section):
    """Files, folders or hub names (`org/name:split@revision`), all formats that `slime-ray inspect` names."""

    train: list[str] = Field(min_length=1, json_schema_extra=PLACE)
    eval: list[str] = Field(
        default=[], json_schema_extra=PLACE, description="held-out files; default: the held-out part, if `part` is set"
    )
    part: Literal["all", "sft", "preference"] = Field(default="all", description="which part of the split to train on")
    split: SplitConfig = SplitConfig()
    limit: int | None = Field(default=None, ge=1, description="use only the first rows of the training part")
    max_length: int = Field(default=2048, ge=2, description="tokens of prompt and completion together")
    max_prompt_length: int | None = Field(default=None, ge=1, description="default: max_length // 2")
    strict: bool = Field(default=False, description="a row that cannot teach ends the run instead of being skipped")

    @property
    def prompt_room(self) -> int:
        """Tokens to which a prompt is cut where prompt and completion do not fit together."""
        return self.max_prompt_length if self.max_prompt_length is not None else self.max_length // 2
