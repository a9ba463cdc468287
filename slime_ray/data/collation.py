"""Rows as one padded rectangle.

Axes: S sequences of a micro-batch (the chosen answers, then the rejected ones), L padded length, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Some pairs of a global batch, padded to one rectangle.

    Attributes:
        input_ids_SL, attention_mask_SL, position_ids_SL: what the model's body is given.
        predict_N: index into the flattened (S, L) of the position that predicts each completion token.
        targets_N, pair_N, rejected_N: the completion tokens' ids, pairs and sides.
        rows: the pairs' rows in the data set.
    """

    input_ids_SL: Tensor
    attention_mask_SL: Tensor
    position_ids_SL: Tensor
    predict_N: Tensor
    targets_N: Tensor
    pair_N: Tensor
    rejected_N: Tensor
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on a device."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(dataset: Any, rows: Sequence[int], *, pad_id: int, padding_side: Literal["left", "right"]) -> MicroBatch:
    """Pad the sequences of some rows to one rectangle and note where each completion token is predicted."""
    columns = dataset[list(rows)]
    answers = [(pair, False, ids) for pair, ids in enumerate(columns["chosen_ids"])]
    answers += [(pair, True, ids) for pair, ids in enumerate(columns["rejected_ids"]) if ids is not None]
    sequences = [[*columns["prompt_ids"][pair], *ids] for pair, _, ids in answers]
    width = max(len(sequence) for sequence in sequences)

    input_ids_SL = torch.full((len(sequences), width), pad_id)
    attention_mask_SL = torch.zeros((len(sequences), width), dtype=torch.long)
    predict, targets, pairs, sides = [], [], [], []
    for index, (sequence, (pair, rejected, ids)) in enumerate(zip(sequences, answers, strict=True)):
        start = 0 if padding_side == "right" else width - len(sequence)
        end = start + len(sequence)
        input_ids_SL[index, start:end] = torch.tensor(sequence)
        attention_mask_SL[index, start:end] = 1
        # The position before a token predicts it.
        predict.append(torch.arange(end - len(ids), end) - 1 + index * width)
        targets.append(torch.tensor(ids))
        pairs.append(torch.full((len(ids),), pair))
        sides.append(torch.full((len(ids),), rejected))
    return MicroBatch(
        input_ids_SL=input_ids_SL,
        attention_mask_SL=attention_mask_SL,
        position_ids_SL=(attention_mask_SL.cumsum(1) - 1).clamp(min=0),
        predict_N=torch.cat(predict),
        targets_N=torch.cat(targets),
        pair_N=torch.cat(pairs),
        rejected_N=torch.cat(sides),
        rows=tuple(int(row) for row in rows),
    )
