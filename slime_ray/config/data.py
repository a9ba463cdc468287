"""`[data]`: which rows, how they are split, and how long they may be."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from slime_ray.config.section import PLACE, READS, Section


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

    train: list[str] = Field(min_length=1, json_schema_extra=PLACE | READS)
    eval: list[str] = Field(
        default=[],
        json_schema_extra=PLACE | READS,
        description="held-out files; default: the held-out part, if `part` is set",
    )
    weights: list[Annotated[float, Field(gt=0.0)]] | None = Field(
        default=None, description="one for each entry of train: how often its rows are seen in an epoch; default: once"
    )
    part: Literal["all", "sft", "preference"] = Field(default="all", description="which part of the split to train on")
    split: SplitConfig = SplitConfig()
    limit: int | None = Field(default=None, ge=1, description="use only the first rows of the training part")
    max_length: int = Field(default=2048, ge=2, description="tokens of prompt and completion together")
    max_prompt_length: int | None = Field(default=None, ge=1, description="default: max_length // 2")
    turns: Literal["last", "all"] = Field(
        default="last", description="which assistant turns of a conversation SFT trains on; a pair has one answer"
    )
    strict: bool = Field(default=False, description="a row that cannot teach ends the run instead of being skipped")

    @field_validator("weights")
    @classmethod
    def _one_for_each_entry(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
        entries = info.data.get("train")  # absent where it is wrong itself
        if weights is not None and entries is not None and len(weights) != len(entries):
            raise ValueError(f"expected one for each entry of data.train, which has {len(entries)}")
        return weights

    @property
    def prompt_room(self) -> int:
        """Tokens to which a prompt is cut where prompt and completion do not fit together."""
        return self.max_prompt_length if self.max_prompt_length is not None else self.max_length // 2
