"""The learning rate's schedule."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from slime_ray.config.training import TrainingConfig
from slime_ray.training.optimizer import make_optimizer

SCHEDULERS = get_args(TrainingConfig.model_fields["scheduler"].annotation)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_takes_a_rate_as_small_as_the_papers(scheduler: str) -> None:
    settings = TrainingConfig.model_validate({"scheduler": scheduler, "learning_rate": 5e-8, "warmup_ratio": 0.1})
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer, schedule = make_optimizer([("weight", parameter)], settings, steps=10)
    rates = []
    for _ in range(10):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(5e-8)
    if scheduler in ("linear", "cosine", "polynomial"):
        assert float(schedule.get_last_lr()[0]) == pytest.approx(0.0, abs=1e-15)
