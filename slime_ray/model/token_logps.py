"""Log-probabilities of given tokens, and entropies, from hidden states, without ever holding the logits.

Axes: N completion tokens, C tokens of one chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A chunk of logits holds about this many numbers: large enough for full matrix speed, small beside the model.
CHUNK_ELEMENTS = 8 * 1024 * 1024


def token_logps(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, bias_V: Tensor | None = None) -> Tensor:
    """log softmax(hidden W^T + bias)[target] of each token, in nats.

    The head is applied in chunks of tokens, and its backward is recomputed, so that no tensor of tokens x vocabulary
    lives longer than a chunk.

    Args:
        hidden_ND: the body's last hidden states at the positions that predict the targets.
        weight_VD: the output embedding.
        targets_N: token ids.
        bias_V: the head's bias, if it has one.

    Returns:
        logps_N in float32, or float64 if the hidden states are.
    """
    return _TokenLogps.apply(hidden_ND, weight_VD, bias_V, targets_N)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def token_logps_and_entropies(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `token_logps` gives, and the entropy of each softmax in nats, from one pass of the head; no gradient.

    Args:
        hidden_ND, weight_VD, targets_N, bias_V: as for `token_logps`.

    Returns:
        logps_N and entropies_N (from 0 to log V), in float32, or float64 if the hidden states are.
    """
    dtype = _result_dtype(hidden_ND)
    logps_N = torch.empty(len(targets_N), dtype=dtype, device=hidden_ND.device)
    entropies_N = torch.empty_like(logps_N)
    compute_VD = weight_VD.to(hidden_ND.dtype)
    for chunk in _chunks(len(targets_N), len(weight_VD)):
        logits_CV = _logits(hidden_ND[chunk], compute_VD, bias_V, dtype)
        logps_N[chunk], normalizer_C = _logps(logits_CV, targets_N[chunk])
        # In place of the logits, so that no second chunk is made; entr is -p log p, and 0 at p = 0.
        probabilities_CV = logits_CV.sub_(normalizer_C[:, None]).exp_()
        entropies_N[chunk] = torch.special.entr(probabilities_CV, out=probabilities_CV).sum(-1)
    return logps_N, entropies_N


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        dtype = _result_dtype(hidden_ND)
        logps_N = torch.empty(len(targets_N), dtype=dtype, device=hidden_ND.device)
        normalizer_N = torch.empty_like(logps_N)
        compute_VD = weight_VD.to(hidden_ND.dtype)
        for chunk in _chunks(len(targets_N), len(weight_VD)):
            logits_CV = _logits(hidden_ND[chunk], compute_VD, bias_V, dtype)
            logps_N[chunk], normalizer_N[chunk] = _logps(logits_CV, targets_N[chunk])
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalizer_N)
        return logps_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_ND, weight_VD, bias_V, targets_N, normalizer_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V) if needs_bias else None
        compute_VD = weight_VD.to(hidden_ND.dtype)
        for chunk in _chunks(len(targets_N), len(weight_VD)):
            hidden_CD, targets_C = hidden_ND[chunk], targets_N[chunk, None]
            # d logp[target] / d logits = onehot(target) - softmax(logits), made in place of the logits.
            grad_CV = _logits(hidden_CD, compute_VD, bias_V, grad_N.dtype)
            grad_CV.sub_(normalizer_N[chunk, None]).exp_().mul_(-grad_N[chunk, None])
            grad_CV.scatter_add_(1, targets_C, grad_N[chunk, None])
            grad_CV = grad_CV.to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                torch.mm(grad_CV, compute_VD, out=grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                grad_weight_VD.addmm_(grad_CV.T.to(weight_VD.dtype), hidden_CD.to(weight_VD.dtype))
            if grad_bias_V is not None:
                grad_bias_V.add_(grad_CV.sum(0))
        return grad_hidden_ND, grad_weight_VD, grad_bias_V, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits_CV = (hidden_CD @ weight_VD.T).to(dtype)
    return logits_CV if bias_V is None else logits_CV.add_(bias_V)


def _logps(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' log-probabilities and the logarithms of the softmax's denominators, both (C,)."""
    normalizer_C = torch.logsumexp(logits_CV, dim=-1)
    return logits_CV.gather(1, targets_C[:, None]).squeeze(1) - normalizer_C, normalizer_C


def _result_dtype(hidden_ND: Tensor) -> torch.dtype:
    return torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]
