"""A recipe: one stage of training, as a TOML file gives it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from slime_ray.config.checkpoint import CheckpointConfig
from slime_ray.config.data import DataConfig
from slime_ray.config.guard import GuardConfig
from slime_ray.config.lora import LoraConfig
from slime_ray.config.loss import LossConfig, SlimeLossConfig
from slime_ray.config.model import ModelConfig
from slime_ray.config.section import PLACE, WRITES, Section
from slime_ray.config.training import TrainingConfig

# Raised when a default changes, since defaults are left out of a run's name.
SETTINGS_VERSION = 1


class Recipe(Section):
    """Everything that decides one training run."""

    name: str = Field(
        default="", json_schema_extra=PLACE, description="default: the path below jobs/recipes/, else the file's stem"
    )
    runs_dir: str = Field(
        default="runs", description="where run folders are kept: a folder or a URL", json_schema_extra=PLACE | WRITES
    )
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = SlimeLossConfig()
    lora: LoraConfig | None = None
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), json_schema_extra=PLACE)
    guard: GuardConfig = Field(default=GuardConfig(), json_schema_extra=PLACE)

    @model_validator(mode="before")
    @classmethod
    def _slime_unless_said(cls, values: Any) -> Any:
        """A [loss] table without a kind is SLIME."""
        if isinstance(values, dict) and isinstance(values.get("loss"), dict) and "kind" not in values["loss"]:
            return {**values, "loss": {"kind": "slime", **values["loss"]}}
        return values

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, name: str) -> str:
        parts = name.split("/")
        if name and any(not part or part.startswith(".") or not part.isprintable() for part in parts):
            raise ValueError("expected letters, digits, '-', '_', '.' and '/' that nests folders")
        return name

    def warnings(self) -> list[str]:
        """Settings that are legal but odd, each as one sentence."""
        found = []
        loss = self.loss
        if isinstance(loss, SlimeLossConfig) and loss.hard_margin < loss.soft_margin:
            found.append(
                f"loss.hard_margin = {loss.hard_margin:g} is below loss.soft_margin = {loss.soft_margin:g}: legal, "
                "but the margin loss then ends before its gate opens; the paper has 1.5 above 1.0"
            )
        metric, best_is = self.checkpoint.best_metric, self.checkpoint.best_is
        if best_is == "lowest" and metric.endswith(("/accuracies", "/margins", "/chosen")) and "loss" not in metric:
            found.append(
                f"checkpoint.best_is = 'lowest' keeps the checkpoint of the lowest {metric}; for the highest set "
                "checkpoint.best_is=highest"
            )
        return found
