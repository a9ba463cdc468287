"""DPO: Direct Preference Optimization (arXiv 2305.18290, equation 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from slime_ray.objectives.completions import CompletionLogps, Metrics, StepTotals, pair_metrics


def dpo(batch: CompletionLogps, totals: StepTotals, *, beta: float) -> tuple[Tensor, Metrics]:
    """L = -log sigmoid(reward_w - reward_l), the mean over the step's pairs.

    The reward is beta times the summed log-probability of the answer over that of the reference policy.
    """
    assert batch.reference_chosen_B is not None
    assert batch.reference_rejected_B is not None
    chosen_B, rejected_B = batch.response_sums()
    chosen_rewards_B = beta * (chosen_B - batch.reference_chosen_B)
    rejected_rewards_B = beta * (rejected_B - batch.reference_rejected_B)
    loss = -logsigmoid(chosen_rewards_B - rejected_rewards_B).sum() / totals.pairs
    metrics = pair_metrics(batch, totals, chosen_rewards_B=chosen_rewards_B, rejected_rewards_B=rejected_rewards_B)
    return loss, {"loss": loss.detach()} | metrics
