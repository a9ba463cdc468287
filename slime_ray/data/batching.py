"""Which rows make a step, and how workers and micro-batches share them. No torch.

The global batch is the unit; how it is dealt and cut changes no result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from slime_ray.config.training import TrainingConfig


@dataclass(frozen=True)
class Lengths:
    """Token counts of every row of a data set, read from the Arrow columns without touching the tokens.

    Attributes:
        prompt, chosen, rejected: tokens of each row's parts; rejected is 0 where a row has none.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, dataset: Any) -> Lengths:
        """Count the tokens of a `datasets.Dataset` with the columns prompt_ids, chosen_ids and rejected_ids."""
        assert dataset._indices is None, "a selection would hide behind the table"
        table = dataset.data.table
        columns = [
            pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
            for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        ]
        return cls(*columns)

    @property
    def longest(self) -> np.ndarray:
        """Tokens of each row's longer sequence."""
        return self.prompt + np.maximum(self.chosen, self.rejected)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens that the body sees for each row, the prompt counted once for each answer."""
        return self.prompt * (1 + (self.rejected > 0)) + self.chosen + self.rejected


def steps_per_epoch(rows: int, config: TrainingConfig) -> int:
    """Global batches of an epoch; the last one may be smaller."""
    return math.ceil(rows / config.pairs_per_step)


def total_steps(rows: int, config: TrainingConfig) -> int:
    """Steps of the whole run."""
    return config.max_steps or max(1, round(config.epochs * steps_per_epoch(rows, config)))


def global_batch(rows: int, config: TrainingConfig, *, step: int) -> np.ndarray:
    """The rows of step `step` (from 0): a function of the seed, the epoch and the place in it alone."""
    epoch, index = divmod(step, steps_per_epoch(rows, config))
    order = np.random.default_rng([config.seed, epoch]).permutation(rows)
    return order[index * config.pairs_per_step : (index + 1) * config.pairs_per_step]


def deal(batch: np.ndarray, lengths: np.ndarray, *, rank: int, world: int) -> np.ndarray:
    """One worker's share of a batch, longest first, so that workers get about the same number of tokens.

    The rows go round forth and back (0, 1, 2, 2, 1, 0, ...) in the order of their length.
    """
    ordered = batch[np.lexsort((batch, -lengths[batch]))]
    turn = np.arange(len(ordered)) % (2 * world)
    return ordered[np.minimum(turn, 2 * world - 1 - turn) == rank]


def cut(rows: np.ndarray, lengths: np.ndarray, *, sequences: int, budget: int) -> list[np.ndarray]:
    """Cut rows, longest first, into micro-batches of at most `budget` padded tokens (at least one row each)."""
    pieces, start = [], 0
    while start < len(rows):
        size = max(1, budget // (sequences * int(lengths[rows[start]])))
        pieces.append(rows[start : start + size])
        start += size
    return pieces
