"""A tiny study: its files, written for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Settings, preference_rows, recipe_writer, write_rows

SPACE = """
[space.loss]
hard_margin = {low = 0.5, high = 3.0}
margin_gap = {low = 0.0, high = 1.5}
lambda_rejected = {low = 1e-4, high = 0.3, log = true}
power = {choices = [1.0, 1.5, 2.0, 2.5, 3.0]}
"""
# Every step is evaluated, so that trials can be stopped.
RECIPE: Settings = {"training.eval_every": 1, "training.max_steps": 6, "training.learning_rate": 3e-3}

WriteStudy = Callable[..., Path]


@pytest.fixture
def write_study(tmp_path: Path, tiny_model: Path, preference_file: Path, held_out_file: Path) -> WriteStudy:
    """A function that writes a study, its recipe and 20 held-out pairs, and returns the study's path.

    It is given lines of the study, tables that take the place of `SPACE`, and settings of the recipe.
    """

    def write(*lines: str, tables: str = SPACE, settings: Settings | None = None) -> Path:
        write = recipe_writer(tmp_path, model=tiny_model, data=preference_file)
        write({"data.eval": [str(held_out_file)]} | RECIPE | (settings or {}))
        held_out = [row | {"prompt": f"held out {row['prompt']}"} for row in preference_rows(20, seed=2)]
        study = tmp_path / "study.toml"
        heads = [
            'recipe = "recipe.toml"',
            f'heldout = "{write_rows(tmp_path / "selecting.jsonl", held_out)}"',
            f'studies_dir = "{tmp_path / "studies"}"',
        ]
        given = {line.partition("=")[0].strip() for line in lines}
        kept = [line for line in heads if line.partition("=")[0].strip() not in given]
        study.write_text("\n".join([*kept, *lines, tables]))
        return study

    return write
