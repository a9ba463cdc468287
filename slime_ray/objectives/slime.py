"""SLIME: Stabilized Likelihood Implicit Margin Enforcement (arXiv 2602.02383, equations 5-10)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from slime_ray.objectives.completions import CompletionLogps, Metrics, StepTotals, pair_metrics


def slime(
    batch: CompletionLogps,
    totals: StepTotals,
    *,
    lambda_chosen: float,
    lambda_rejected: float,
    lambda_margin: float,
    rejected_threshold: float,
    hard_margin: float,
    soft_margin: float,
    kappa: float,
    power: float,
    stabilizer_reduction: Literal["sequence", "batch"],
    soft_gate: bool,
    hard_factor: bool,
) -> tuple[Tensor, Metrics]:
    """L = L_w + L_l + L_dist, the micro-batch's share of the mean over the step's pairs, in nats.

    With l_t the log-probability of a token, lbar its mean over an answer and Delta = lbar_w - lbar_l:

        L_w    = -lambda_chosen * lbar_w                                                        (anchor)
        L_l    =  lambda_rejected * mean_t softplus(-l_t - rejected_threshold)^power            (token stabilizer)
        L_dist =  lambda_margin * max(0, hard_margin - Delta) * sigmoid(-kappa (Delta - soft_margin))  (dual margin)

    The reward is lbar. `stabilizer_reduction` "sequence" takes the mean over each rejected answer, then over pairs (the
    equation); "batch" takes it over all rejected tokens of the step (the authors' code). `soft_gate=False` sets the
    sigmoid to 1, `hard_factor=False` the max(0, .) to 1: the paper's ablations.

    Returns:
        The loss (a scalar with gradient) and the metrics, loss/chosen, loss/rejected and loss/margin among them.
    """
    chosen_B, rejected_B = batch.response_means()
    delta_B = chosen_B - rejected_B

    anchor = -lambda_chosen * chosen_B.sum() / totals.pairs

    penalty_N = softplus(-batch.logps_N - rejected_threshold).pow(power)
    if stabilizer_reduction == "sequence":
        stabilizer = batch.response_mean(penalty_N, rejected=True).sum() / totals.pairs
    else:
        stabilizer = penalty_N[batch.rejected_N].sum() / totals.rejected_tokens
    stabilizer = lambda_rejected * stabilizer

    ones_B = torch.ones_like(delta_B)
    factor_B = relu(hard_margin - delta_B) if hard_factor else ones_B
    gate_B = torch.sigmoid(-kappa * (delta_B - soft_margin)) if soft_gate else ones_B
    margin = lambda_margin * (factor_B * gate_B).sum() / totals.pairs

    loss = anchor + stabilizer + margin
    metrics = pair_metrics(batch, totals, chosen_rewards_B=chosen_B, rejected_rewards_B=rejected_B)
    terms = {"loss": loss, "loss/chosen": anchor, "loss/rejected": stabilizer, "loss/margin": margin}
    return loss, {name: term.detach() for name, term in terms.items()} | metrics
