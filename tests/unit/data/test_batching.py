"""Which rows make a step, and who gets them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slime_ray.config.training import TrainingConfig
from slime_ray.data.batching import cut, deal, global_batch, steps_per_epoch, total_steps


@pytest.mark.parametrize(("rows", "pairs_per_step"), [(41, 8), (40, 8), (5, 8), (1, 1), (9, 2)])
def test_every_row_of_an_epoch_occurs_once(rows: int, pairs_per_step: int) -> None:
    config = TrainingConfig(pairs_per_step=pairs_per_step, epochs=2, seed=3)
    steps = steps_per_epoch(rows, config)
    assert total_steps(rows, config) == 2 * steps
    epochs = [[global_batch(rows, config, step=epoch * steps + g) for g in range(steps)] for epoch in range(2)]
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
        assert [len(batch) for batch in batches[:-1]] == [pairs_per_step] * (steps - 1)
        assert len(batches[-1]) == (rows % pairs_per_step or pairs_per_step)
    if rows > 8:
        assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))


def test_a_global_batch_is_a_function_of_seed_epoch_and_place_alone() -> None:
    config = TrainingConfig(pairs_per_step=8, epochs=3)
    in_order = [global_batch(41, config, step=step).tolist() for step in range(18)]
    np.random.seed(1)
    torch.manual_seed(1)
    # Whatever came before, however the run is spread, and however long it is to be.
    elsewhere = {"num_workers": 4, "tokens_per_micro_batch": 1, "padding_side": "left", "epochs": 9, "max_steps": 5}
    other = config.model_copy(update=elsewhere | {"learning_rate": 1.0})
    for step in reversed(range(18)):
        assert global_batch(41, other, step=step).tolist() == in_order[step]
    reseeded = [global_batch(41, config.model_copy(update={"seed": 1}), step=step).tolist() for step in range(18)]
    assert all(one != two for one, two in zip(in_order[:5], reseeded[:5], strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 64])
def test_dealing_is_a_partition_of_like_parts(size: int, world: int) -> None:
    generator = np.random.default_rng([size, world])
    lengths = generator.lognormal(3, 1.5, 200).astype(np.int64) + 1
    batch = generator.permutation(200)[:size]
    parts = [deal(batch, lengths, rank=rank, world=world) for rank in range(world)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
    counts = [len(part) for part in parts]
    assert max(counts) - min(counts) <= 2
    sums = [int(lengths[part].sum()) for part in parts]
    assert max(sums) - min(sums) <= lengths[batch].max()
    for part in parts:
        assert (np.diff(lengths[part]) <= 0).all()


def test_dealing_goes_forth_and_back() -> None:
    lengths = np.array([1, 9, 5, 5, 2, 7, 3])
    batch = np.array([3, 0, 1, 2, 6, 5, 4])
    assert [deal(batch, lengths, rank=rank, world=2).tolist() for rank in (0, 1)] == [[1, 3, 6], [5, 2, 4, 0]]


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("budget", [1, 50, 300, 10**9])
def test_cutting_keeps_order_and_budget(budget: int, sequences: int) -> None:
    generator = np.random.default_rng(budget)
    lengths = generator.integers(1, 100, 64)
    rows = deal(np.arange(64), lengths, rank=0, world=1)
    pieces = cut(rows, lengths, sequences=sequences, budget=budget)
    assert np.concatenate(pieces).tolist() == rows.tolist()
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        longest = sequences * int(lengths[piece].max())
        assert len(piece) == 1 or len(piece) * longest <= budget
        # Another row would not have fitted.
        assert following is None or (len(piece) + 1) * longest > budget
    assert cut(np.array([], dtype=np.int64), lengths, sequences=sequences, budget=budget) == []
