"""Supervised fine-tuning: the mean negative log-likelihood of the completion tokens."""

from __future__ import annotations

from torch import Tensor

from slime_ray.objectives.completions import CompletionLogps, Metrics, StepTotals, pair_metrics


def sft(batch: CompletionLogps, totals: StepTotals) -> tuple[Tensor, Metrics]:
    """L = -(sum of log-probabilities) / (completion tokens of the step).

    Rejected answers, where there are any, are only measured. The reward is the mean token log-probability.
    """
    loss = -batch.logps_N[~batch.rejected_N].sum() / totals.chosen_tokens
    if totals.rejected_tokens:
        chosen_B, rejected_B = batch.response_means()
        metrics = pair_metrics(batch, totals, chosen_rewards_B=chosen_B, rejected_rewards_B=rejected_B)
    else:
        metrics = {
            "logps/chosen": batch.response_sums()[0].detach().sum() / totals.pairs,
            "mean_logps/chosen": batch.response_means()[0].detach().sum() / totals.pairs,
        }
    return loss, {"loss": loss.detach()} | metrics
