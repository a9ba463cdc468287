"""What a step is said to take against the same step on real tensors; and what is chosen with so much room."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slime_ray.config.recipe import Recipe
from slime_ray.config.training import TrainingConfig
from slime_ray.data.batching import Lengths
from slime_ray.data.collation import RowTokens, pack, pad
from slime_ray.model.loading import empty_model, load_model
from slime_ray.model.policy import Policy
from slime_ray.model.source import find_model
from slime_ray.training import memory
from slime_ray.training.memory import PROCESS_BYTES, Fit, Need, Rows, fit, fitted, measure_need, room_for_worker
from tests.families import FAMILIES

CPU = torch.device("cpu")
SHARES = (0.25, 0.5, 0.25)
LORA = {"r": 4, "alpha": 8, "modules_to_save": ["lm_head"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models saved to disk, by family."""

    def save(family: str) -> Path:
        path = tmp_path_factory.getbasetemp() / "memory" / family
        if not path.exists():
            FAMILIES[family](seed=0, vocabulary=2000, tied=False).float().save_pretrained(path)
        return path

    return save


def recipe_for(model: Path, **settings: Any) -> Recipe:
    values = {"model": {"name": str(model)}, "data": {"train": ["pairs.jsonl"], "max_length": 512}}
    return Recipe.model_validate(values | settings)


def real_peak(recipe: Recipe, tokens: int, *, checkpointing: bool) -> tuple[int, int]:
    """Bytes of weights, gradients and moments, and what the second step on one pair takes beside them."""
    source = find_model(recipe.model.name, runs_dir=Path("runs"))
    policy = Policy(
        load_model(source, recipe.model),
        lora=recipe.lora,
        device=CPU,
        layout=recipe.training.layout,
        checkpointing=checkpointing,
    )
    ids = np.arange(tokens, dtype=np.int32) % 2000
    prompt, chosen, _ = (round(share * tokens) for share in SHARES)
    pair = RowTokens(ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :])
    batch = pack([pair], rows=(0,)) if policy.layout == "packed" else pad([pair], rows=(0,), pad_id=0, left=False)
    policy.zero_gradients()
    policy.completion_logps(batch).sum().backward()
    policy.zero_gradients()
    with memory._Live() as live:
        for parameter in policy.model.parameters():  # what is there already, whose views are no new tensors
            for tensor in (parameter, parameter.grad):
                live._sizes |= {} if tensor is None else {tensor.untyped_storage()._cdata: 0}
        policy.completion_logps(batch).sum().backward()
    parameters = {id(p): p for p in policy.model.parameters()}.values()
    trained = sum(p.numel() * p.element_size() for _, p in policy.trained())
    return sum(p.numel() * p.element_size() for p in parameters) + 3 * trained, live.peak


@pytest.mark.parametrize(
    ("family", "settings", "checkpointing"),
    [
        pytest.param("llama", {}, False, id="full"),
        pytest.param("llama", {}, True, id="full, checkpointing"),
        pytest.param("llama", {"lora": LORA}, False, id="lora and head"),
        pytest.param("llama", {"training": {"layout": "padded"}}, False, id="padded"),
        pytest.param("gemma2", {"lora": LORA}, False, id="windows and caps"),
        pytest.param("gpt2", {}, False, id="learnt positions"),
        pytest.param("mixtral", {}, False, id="experts"),
    ],
)
def test_a_step_takes_what_it_is_said_to_take(
    folder: Callable[[str], Path], family: str, settings: dict[str, Any], checkpointing: bool
) -> None:
    recipe = recipe_for(folder(family), **settings)
    tokens = 240  # within the positions of the families' models

    source = find_model(recipe.model.name, runs_dir=Path("runs"))
    need = measure_need(
        recipe, partial(empty_model, source, recipe.model), shares=SHARES, checkpointing=checkpointing, probes=(60, 240)
    )
    state, step = real_peak(recipe, tokens, checkpointing=checkpointing)
    assert need.state == pytest.approx(state, rel=0.01)
    assert need.peak(tokens) - need.state == pytest.approx(step, rel=0.05)
    assert need.checkpointing is checkpointing


def test_checkpointing_takes_less(folder: Callable[[str], Path]) -> None:
    recipe = recipe_for(folder("llama"))
    make = partial(empty_model, find_model(recipe.model.name, runs_dir=Path("runs")), recipe.model)
    kept, again = (measure_need(recipe, make, shares=SHARES, checkpointing=on) for on in (False, True))
    assert kept.state == again.state
    assert again.per_token < 0.7 * kept.per_token


NEEDS = {False: Need(10**9, 0.0, 10**6, False), True: Need(10**9, 0.0, 10**5, True)}
ROWS = Rows(SHARES, longest=1000, of_step=50_000)


@pytest.fixture
def fit_into(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fit]:
    """Fit a recipe that needs `NEEDS` into so many bytes of tensors."""
    monkeypatch.setattr(memory, "measure_need", lambda *_, checkpointing, **__: NEEDS[checkpointing])

    def call(room: float, *, rows: Rows = ROWS, **training: Any) -> Fit:
        recipe = recipe_for(Path("nowhere"), training=training)
        return fit(recipe, lambda: pytest.fail("no model is needed"), rows, room=int(room) + PROCESS_BYTES)

    return call


def test_the_largest_micro_batch_that_fits_is_chosen(fit_into: Callable[..., Fit]) -> None:
    found = fit_into(6e9)
    assert (found.tokens, found.need.checkpointing, found.warning) == (5000, False, None)
    assert found.peak == 6 * 10**9 + PROCESS_BYTES
    assert fit_into(100e9).tokens == 16384


def test_checkpointing_is_chosen_where_the_longest_pair_does_not_fit_without(fit_into: Callable[..., Fit]) -> None:
    found = fit_into(1.9e9)
    assert (found.tokens, found.need.checkpointing, found.warning) == (9000, True, None)
    # Also where the micro-batch that is asked for does not.
    assert fit_into(6e9, tokens_per_micro_batch=6000).need.checkpointing
    assert not fit_into(6e9, tokens_per_micro_batch=5000).need.checkpointing


def test_what_a_recipe_says_is_kept(fit_into: Callable[..., Fit]) -> None:
    assert not fit_into(1.9e9, gradient_checkpointing=False).need.checkpointing
    assert fit_into(100e9, gradient_checkpointing=True).need.checkpointing
    assert fit_into(100e9, tokens_per_micro_batch=77).tokens == 77
    settings = TrainingConfig(learning_rate=0.5)
    chosen = fitted(settings, fit_into(1.9e9))
    assert (chosen.tokens_per_micro_batch, chosen.gradient_checkpointing, chosen.learning_rate) == (9000, True, 0.5)


def test_what_does_not_fit_is_said(fit_into: Callable[..., Fit]) -> None:
    found = fit_into(1.05e9)
    assert found.largest == 1000
    assert found.warning is not None
    assert found.warning.startswith("a worker is expected to take 1.7 GB of memory, and may take 1.65 GB: ")


def test_a_step_of_few_pairs_takes_no_more_than_they_do(fit_into: Callable[..., Fit]) -> None:
    assert fit_into(100e9, rows=Rows(SHARES, longest=1000, of_step=3000)).largest == 3000


def test_rows_as_they_fill_a_micro_batch() -> None:
    lengths = Lengths(*(np.array(values) for values in ([4, 10], [6, 1], [2, 5], [0, 0])))
    settings = TrainingConfig(pairs_per_step=1)
    packed = Rows.of(lengths, settings, packed=True, workers=1)
    assert packed == Rows((14 / 28, 7 / 28, 7 / 28), longest=16, of_step=16)
    assert Rows.of(lengths, settings, packed=False, workers=1).longest == 30
    both = Rows.of(lengths, TrainingConfig(pairs_per_step=4), packed=True, workers=2)
    assert both.of_step == 28


def test_workers_of_a_machine_share_its_memory() -> None:
    alone, shared = (room_for_worker(TrainingConfig(), workers=workers, device=CPU) for workers in (1, 4))
    assert shared == pytest.approx(alone / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_an_allocator_s_refusal_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert memory.is_out_of_memory(error) is expected
