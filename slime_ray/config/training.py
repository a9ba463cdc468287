"""`[training]`: the optimizer, the batch, and where the work is done."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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

    tokens_per_micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="what memory depends on, and the result does not; default: as many as fit, 16384 at most",
        json_schema_extra=PLACE,
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="compute activations again in the backward; default: where they do not fit",
        json_schema_extra=PLACE,
    )
    layout: Literal["auto", "packed", "padded", "padded_left"] = Field(
        default="auto", description="of micro-batches; auto packs where the model allows it", json_schema_extra=PLACE
    )
    compile: bool = Field(default=False, description="torch.compile of the layers", json_schema_extra=PLACE)
    num_workers: int | tuple[int, int] = Field(
        default=1,
        description="Ray Train workers; 0 trains in this process without Ray; [fewest, most] follows the cluster",
        json_schema_extra=PLACE,
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="cores and threads of a worker", json_schema_extra=PLACE)
    use_gpu: bool = Field(default=False, description="one GPU for each worker", json_schema_extra=PLACE)
    gpus_per_worker: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="below 1, runs of one worker each, such as a study's trials, share a GPU",
        json_schema_extra=PLACE,
    )
    log_every: int = Field(default=1, ge=1, description="steps between lines of metrics.jsonl", json_schema_extra=PLACE)
    max_failures: int = Field(
        default=3, ge=0, description="times that workers may be lost before a command gives up", json_schema_extra=PLACE
    )
    wait_minutes: float = Field(
        default=0.0,
        ge=0.0,
        description="for a cluster that grows, or gets lost nodes back, to have room for the workers",
        json_schema_extra=PLACE,
    )
    hang_minutes: float = Field(
        default=10.0,
        gt=0.0,
        description="a worker that is silent for so long is taken for lost",
        json_schema_extra=PLACE,
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_or_two(cls, value: Any) -> int | tuple[int, int]:
        numbers = [value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if whole and len(numbers) == 1 and numbers[0] >= 0 and isinstance(value, int):
            return numbers[0]
        if whole and len(numbers) == 2 and 1 <= numbers[0] <= numbers[1]:
            return (numbers[0], numbers[1])
        raise ValueError("expected a whole number from 0, or [fewest, most] from 1")

    @model_validator(mode="after")
    def _shared_by_runs(self) -> TrainingConfig:
        if self.gpus_per_worker < 1 and self.num_workers not in (0, 1):
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} puts several workers of one run on a GPU, which NCCL does "
                "not allow; expected num_workers = 1 or 0 with it"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """Workers that a cluster must have room for."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]
