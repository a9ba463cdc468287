"""`[guard]`: what is watched at every evaluation, and what is done about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slime_ray.config.section import Section


class GuardConfig(Section):
    """The likelihood guard. It stops a run or lets it go on; it changes no step.

    It judges the held-out rows at every evaluation: the entropy against the run's start, the other values against the
    best of the earlier evaluations, the start among them.
    """

    action: Literal["warn", "stop", "off"] = Field(default="warn", description="stop: end the run, exit code 3")
    chosen_drop: float = Field(
        default=0.5, gt=0.0, description="how far the chosen answers' mean log-probability may fall, nats per token"
    )
    entropy_rise: float = Field(
        default=0.25,
        gt=0.0,
        description="how far the entropy on chosen tokens may rise for three evaluations in a row, nats per token; "
        "twice as far for one",
    )
    floor: float = Field(
        default=-15.0, lt=0.0, description="a rejected token of a lower log-probability counts as collapsed, nats"
    )
    floor_rise: float = Field(
        default=0.1, gt=0.0, le=1.0, description="how far the share of collapsed rejected tokens may rise"
    )
    accuracy_fall: float = Field(
        default=0.05,
        gt=0.0,
        le=1.0,
        description="how far the share of pairs ranked right may fall, or twice its standard error if that is more; "
        "not for sft",
    )
    grad_norm_growth: float = Field(
        default=10.0, gt=1.0, description="how many times its median over the first steps the gradient's norm may be"
    )
