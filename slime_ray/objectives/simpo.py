"""SimPO: Simple Preference Optimization (arXiv 2405.14734, equation 6)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from slime_ray.objectives.completions import CompletionLogps, Metrics, StepTotals, pair_metrics


def simpo(batch: CompletionLogps, totals: StepTotals, *, beta: float, gamma: float) -> tuple[Tensor, Metrics]:
    """L = -log sigmoid(reward_w - reward_l - gamma), the mean over the step's pairs.

    The reward is beta times the mean token log-probability of the answer; no reference policy is used.
    """
    chosen_B, rejected_B = batch.response_means()
    chosen_rewards_B, rejected_rewards_B = beta * chosen_B, beta * rejected_B
    loss = -logsigmoid(chosen_rewards_B - rejected_rewards_B - gamma).sum() / totals.pairs
    metrics = pair_metrics(batch, totals, chosen_rewards_B=chosen_rewards_B, rejected_rewards_B=rejected_rewards_B)
    return loss, {"loss": loss.detach()} | metrics
