"""`[checkpoint]`: when the state of a run is written and how much of it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slime_ray.config.section import Section


class CheckpointConfig(Section):
    """What a run can be continued from. Nothing here changes what comes out of it."""

    every_minutes: float = Field(default=5.0, gt=0.0, description="minutes between checkpoints")
    every_steps: int | None = Field(default=None, ge=1, description="steps between checkpoints, besides the minutes")
    keep_last: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    best_metric: str = Field(
        default="eval_loss", description='the best evaluation\'s checkpoint is kept too, by this metric; "": none is'
    )
    best_is: Literal["lowest", "highest"] = "lowest"
