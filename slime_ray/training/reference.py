"""The reference policy's values, computed once before training and stored under the hash of what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from slime_ray.storage import write_bytes


@dataclass(frozen=True)
class ReferenceLogps:
    """Summed log-probabilities of every row's answers under the policy that training starts from.

    Attributes:
        chosen, rejected: float64, one value a row of the data set, in nats.
    """

    chosen: np.ndarray
    rejected: np.ndarray

    def of(self, rows: Sequence[int], *, like: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The values of some rows, chosen and rejected, both (B,)."""
        chosen_B, rejected_B = (torch.from_numpy(side[list(rows)]) for side in (self.chosen, self.rejected))
        return chosen_B.to(device, like), rejected_B.to(device, like)

    def save(self, path: Path) -> None:
        """Write the values, whole or not at all."""
        write_bytes(path, save({"chosen": self.chosen, "rejected": self.rejected}))

    @classmethod
    def load(cls, path: Path) -> ReferenceLogps:
        """Read what `save` wrote."""
        return cls(**load(path.read_bytes()))
