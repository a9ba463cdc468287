"""Whatever ends a training in this process, the same command gives the weights of one that nothing disturbed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from slime_ray.runs import Run
from tests.faults.harness import Kill, Start, assert_same_outcome, run_of

STEPS = 12
KILLS = 20
# Adapters with dropout and a head trained in full: whatever may be forgotten is there.
SETTINGS = {
    "training.max_steps": STEPS,
    "training.eval_every": 4,
    "training.learning_rate": 1e-2,
    "training.scheduler": "cosine",
    "training.warmup_ratio": 0.2,
    "checkpoint.every_steps": 2,
    "lora.r": 4,
    "lora.alpha": 8,
    "lora.dropout": 0.1,
    "lora.modules_to_save": ["lm_head"],
    "loss.kind": "dpo",
}
WriteRecipe = Callable[..., Path]


@pytest.fixture
def recipe(write_recipe: WriteRecipe, held_out_file: Path) -> Path:
    return write_recipe(SETTINGS | {"data.eval": [str(held_out_file)]})


@pytest.fixture
def undisturbed(recipe: Path, start: Start, tmp_path: Path) -> Run:
    """The same run in another runs folder, trained in one go."""
    elsewhere = f"runs_dir={tmp_path / 'undisturbed'}"
    ended = start(recipe, elsewhere).wait()
    assert ended.code == 0, ended.err
    return run_of(recipe, elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "kills"), [("/checkpoints/", 10), ("/final", 7), ("", 3)])
def test_killed_while_it_writes(
    part: str, kills: int, recipe: Path, start: Start, undisturbed: Run, tmp_path: Path
) -> None:
    """Twenty seeded moments: in a checkpoint, in final/, and anywhere in the run's folder."""
    counted = tmp_path / "operations"
    start(recipe, kill=Kill(f"{run_of(recipe).folder}{part}", operation=10**9, count_to=str(counted))).wait()
    operations = int(counted.read_text())
    assert operations > kills
    random = Random(f"kills/{part}")
    for number in range(kills):
        place = f"runs_dir={tmp_path / str(number)}"
        moment = random.randrange(operations), random.choice([0.0, random.uniform(0, 2e-3)])
        killed = start(recipe, place, kill=Kill(f"{run_of(recipe, place).folder}{part}", *moment)).wait()
        assert killed.code == -signal.SIGKILL, (moment, killed.err)
        again = start(recipe, place).wait()
        assert again.code == 0, (moment, again.err)
        assert_same_outcome(run_of(recipe, place), undisturbed)
