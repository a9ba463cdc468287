"""A study's recipe: which settings of a training recipe are searched, by what, and how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from slime_ray.config.evaluation import FolderName
from slime_ray.config.section import READS, WRITES, Section

Objective = Literal["accuracy", "chosen_logp", "checked_greedy", "checked_sampled"]
StoppingMetric = Literal["eval_rewards/accuracies", "eval_mean_logps/chosen"]

_OBJECTIVES = "accuracy, chosen_logp, checked_greedy, checked_sampled"
_LEAF = {"low", "high", "log", "choices"}


def _independent(name: Any) -> Any:
    """Refuse what would be optimised by changing how it is measured."""
    own = isinstance(name, str) and any(word in name for word in ("loss", "margin", "reward"))
    if own and not name.endswith("rewards/accuracies"):
        raise ValueError(
            "it depends on the settings that are searched, so that a smaller weight or margin changes it and improves "
            f"no answer; expected one of {_OBJECTIVES}"
        )
    return name


def _number(value: Any) -> Any:
    """Pydantic would read "1" and true as 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("expected a number")
    return value


class ParameterConfig(Section):
    """One searched setting: from `low` to `high`, evenly or with `log` by orders of magnitude, or one of `choices`."""

    low: Annotated[int | float | None, BeforeValidator(_number)] = None
    high: Annotated[int | float | None, BeforeValidator(_number)] = None
    log: bool = False
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _range_or_choices(self) -> ParameterConfig:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("has choices and a range; expected {choices = [...]} or {low = ..., high = ...}")
            if len({repr(choice) for choice in self.choices}) < 2:
                raise ValueError("expected at least two different choices")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected {low = ..., high = ...} or {choices = [...]}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty; expected low below high")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true from {self.low:g}: orders of magnitude begin above 0; raise low")
        return self


def _flat(values: Any) -> Any:
    """Tables of tables as dotted keys."""
    if not isinstance(values, Mapping):
        return values
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not _LEAF.intersection(value):
            inner = _flat(value)
            flat |= {f"{key}.{rest}": each for rest, each in inner.items()}
        else:
            flat[key] = value
    return flat


def _searchable(space: dict[str, ParameterConfig]) -> dict[str, ParameterConfig]:
    if "training.seed" in space:
        raise ValueError("training.seed is chance, no setting; [noise] measures what it changes")
    if {"loss.margin_gap", "loss.soft_margin"} <= space.keys():
        raise ValueError("loss.margin_gap is hard_margin - soft_margin; leave loss.soft_margin out")
    gap = space.get("loss.margin_gap")
    given = (gap.choices or (gap.low,)) if gap is not None else ()
    if any(isinstance(value, int | float) and value < 0 for value in given):
        raise ValueError("loss.margin_gap is hard_margin - soft_margin; expected 0 or more")
    return space


SpaceConfig = Annotated[dict[str, ParameterConfig], BeforeValidator(_flat), AfterValidator(_searchable)]


class StoppingConfig(Section):
    """`[stopping]`: trials that fall behind are stopped early (asynchronous successive halving, arXiv 1810.05934)."""

    metric: Annotated[StoppingMetric, BeforeValidator(_independent)] = "eval_rewards/accuracies"
    first: int = Field(ge=1, description="steps before any trial is stopped")
    factor: int = Field(default=3, ge=2, description="one in so many goes on to so many times the steps")


class JudgeConfig(Section):
    """`[judge]`: the best trials are served, answer questions and are judged."""

    serve: str = Field(description="recipe of an endpoint; its first model is what a trial is served like")
    evaluate: str = Field(description="recipe of an evaluation")
    top: int = Field(default=3, ge=1, description="trials that are judged, by the first objective")


class NoiseConfig(Section):
    """`[noise]`: the recipe's own settings and the best ones under other seeds."""

    seeds: int = Field(default=3, ge=2, description="of each, the trial itself among them")


class StudyRecipe(Section):
    """Everything that decides one study; paths of recipes are relative to the study's file."""

    name: FolderName = Field(default="", description="default: the path below jobs/recipes/, else the file's stem")
    studies_dir: str = Field(default="studies", json_schema_extra=WRITES, description="where study folders are kept")
    recipe: str = Field(description="the training recipe that is varied")
    heldout: str = Field(
        json_schema_extra=READS, description="pairs that no trial is trained on: a file, folder or hub name"
    )
    trials: int = Field(default=24, ge=1, description="those of the recipe's and the paper's settings among them")
    concurrent: int | None = Field(default=None, ge=1, description="trials at once; default: as many as fit")
    objectives: tuple[Annotated[Objective, BeforeValidator(_independent)], ...] = Field(
        default=("accuracy",), min_length=1, description="the first one ranks, all make the Pareto front"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="where a checked answer is cut off")
    seed: int = Field(default=0, ge=0, lt=2**32)
    space: SpaceConfig = Field(min_length=1)
    stopping: StoppingConfig | None = Field(default=None, description="default: no trial is stopped")
    judge: JudgeConfig | None = Field(default=None, description="default: nothing is judged")
    noise: NoiseConfig | None = Field(default=None, description="default: noise is not measured")

    @model_validator(mode="after")
    def _objectives_differ(self) -> StudyRecipe:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives has one twice; expected each once")
        return self
