"""`[training]`: the optimizer, the batch, and where the work is done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slime_ray.config.section import PLACE, Section


class TrainingConfig(Section):
    """One stage of training. The paper decays linearly to 0 without warm-up or clipping; so do the defaults."""

    learning_rate: float = Field(default=5e-7, gt=0.0)
    epochs: float = Field(default=1.0, gt=0.0)
    max_steps: int | None = Field(default=None, ge=1, description="ends earlier than, or repeats beyond, the epochs")
    pairs_per_step: int = Field(default=128, ge=1, description="the global batch: what the result depends on")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = "linear"
    warmup_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    adam_epsilon: float = Field(default=1e-8, gt=0.0)
    max_grad_norm: float | None = Field(default=None, gt=0.0, description="clip the gradient's norm; default: never")
    seed: int = Field(default=0, ge=0, lt=2**32)
    eval_every: int | None = Field(
        default=None, ge=1, description="steps; default: before the first and after the last"
    )

    tokens_per_micro_batch: int = Field(
        default=16384, ge=1, description="what memory depends on; the result does not", json_schema_extra=PLACE
    )
    padding_side: Literal["right", "left"] = Field(default="right", json_schema_extra=PLACE)
    num_workers: int = Field(
        default=1, ge=0, description="Ray Train workers; 0 trains in this process without Ray", json_schema_extra=PLACE
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="cores and threads of a worker", json_schema_extra=PLACE)
    use_gpu: bool = Field(default=False, description="one GPU for each worker", json_schema_extra=PLACE)
    log_every: int = Field(default=1, ge=1, description="steps between lines of metrics.jsonl", json_schema_extra=PLACE)
