"""SLIME against values computed independently in float64: loss, terms and every gradient, in both reductions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_ray.config.loss import SlimeLossConfig
from slime_ray.objectives.completions import CompletionLogps, StepTotals
from slime_ray.objectives.slime import slime

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "slime_loss.json"
GOLDEN = Path(os.environ.get("SLIME_GOLDEN", SHARED))
# The golden file's names for what the settings and metrics are called here.
SETTINGS = {"lambda_dist": "lambda_margin", "delta": "rejected_threshold", "p": "power"}
TERMS = {"dist": "margin"}


def cases() -> list[Any]:
    if not GOLDEN.exists():
        return []
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=f"{number}-{case['kind']}") for number, case in enumerate(found)]


def test_the_golden_file_is_there() -> None:
    if not GOLDEN.exists() and "SLIME_GOLDEN" not in os.environ:
        pytest.skip(f"{GOLDEN} is absent; set SLIME_GOLDEN to a golden file")
    assert cases(), f"no cases in {GOLDEN}"


@pytest.mark.parametrize("reduction", ["sequence", "batch"])
@pytest.mark.parametrize("case", cases())
def test_loss_terms_and_gradients(case: dict[str, Any], reduction: str) -> None:
    expected = case[reduction]
    settings = {SETTINGS.get(key, key): value for key, value in case["config"].items()}
    config = SlimeLossConfig.model_validate({**settings, "stabilizer_reduction": reduction})
    responses = case["chosen_token_logps"] + case["rejected_token_logps"]
    pairs = len(case["chosen_token_logps"])
    logps_N = torch.tensor([logp for response in responses for logp in response], dtype=torch.float64)
    logps_N.requires_grad_()
    response_N = torch.tensor([index for index, response in enumerate(responses) for _ in response])
    batch = CompletionLogps(logps_N=logps_N, pair_N=response_N % pairs, rejected_N=response_N >= pairs, pairs=pairs)
    rejected_tokens = int(batch.rejected_N.sum())
    totals = StepTotals(pairs, len(logps_N) - rejected_tokens, rejected_tokens)

    loss, metrics = slime(batch, totals, **config.model_dump(exclude={"kind"}))
    loss.backward()

    close(loss, expected["loss"])
    for term, value in expected["terms"].items():
        close(metrics[f"loss/{TERMS.get(term, term)}"], value)
    close(metrics["rewards/margins"], sum(expected["delta_logps"]) / pairs)
    gradients = [g for side in ("grad_chosen", "grad_rejected") for response in expected[side] for g in response]
    close(logps_N.grad, gradients)


def close(actual: Any, expected: Any) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-8, atol=1e-12)
