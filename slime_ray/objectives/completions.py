"""What an objective is given: log-probabilities of completion tokens, and the size of the whole step.

Axes: N completion tokens of a micro-batch (of chosen and rejected answers), B pairs of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class CompletionLogps:
    """A micro-batch as the objective sees it: no logits, no padding, no mask.

    Attributes:
        logps_N: log pi(token | what stands before it) in nats, float32 (float64 if the model is).
        pair_N: index below `pairs` of the pair that the token belongs to.
        rejected_N: whether the token is of the pair's rejected answer.
        pairs: B, the number of pairs.
        reference_chosen_B, reference_rejected_B: summed log-probabilities of the answers under the reference policy,
            for objectives that use one.
    """

    logps_N: Tensor
    pair_N: Tensor
    rejected_N: Tensor
    pairs: int
    reference_chosen_B: Tensor | None = None
    reference_rejected_B: Tensor | None = None

    def response_sums(self) -> tuple[Tensor, Tensor]:
        """Summed log-probability of each chosen and each rejected answer, both of shape (B,)."""
        return self._per_response(self.logps_N, rejected=False), self._per_response(self.logps_N, rejected=True)

    def response_means(self) -> tuple[Tensor, Tensor]:
        """Mean log-probability per token of each chosen and each rejected answer (lbar of the paper), both (B,)."""
        return self.response_mean(self.logps_N, rejected=False), self.response_mean(self.logps_N, rejected=True)

    def response_mean(self, values_N: Tensor, *, rejected: bool) -> Tensor:
        """Mean of a per-token value over each answer of one side, shape (B,); 0 where the answer has no token."""
        tokens_B = self._per_response(torch.ones_like(values_N), rejected=rejected)
        return self._per_response(values_N, rejected=rejected) / tokens_B.clamp(min=1)

    def _per_response(self, values_N: Tensor, *, rejected: bool) -> Tensor:
        side_N = self.rejected_N if rejected else ~self.rejected_N
        return values_N.new_zeros(self.pairs).index_add(0, self.pair_N[side_N], values_N[side_N])


@dataclass(frozen=True)
class StepTotals:
    """Counts over all micro-batches of all workers of one step (or one evaluation).

    An objective divides its sums by these, so adding up micro-batches gives the step's loss exactly.
    """

    pairs: int
    chosen_tokens: int
    rejected_tokens: int


def pair_metrics(
    batch: CompletionLogps, totals: StepTotals, *, chosen_rewards_B: Tensor, rejected_rewards_B: Tensor
) -> Metrics:
    """What every objective on pairs reports, as the micro-batch's share of the step's means.

    logps/* are sums over an answer, as in TRL; mean_logps/* are per token; the rewards are the objective's own.
    """
    chosen_B, rejected_B = batch.response_sums()
    chosen_means_B, rejected_means_B = batch.response_means()
    values_B = {
        "rewards/chosen": chosen_rewards_B,
        "rewards/rejected": rejected_rewards_B,
        "rewards/accuracies": (chosen_rewards_B > rejected_rewards_B).to(chosen_B.dtype),
        "rewards/margins": chosen_rewards_B - rejected_rewards_B,
        "logps/chosen": chosen_B,
        "logps/rejected": rejected_B,
        "mean_logps/chosen": chosen_means_B,
        "mean_logps/rejected": rejected_means_B,
    }
    return {name: value_B.detach().sum() / totals.pairs for name, value_B in values_B.items()}
