"""The end of a training: what its last step did is looked at before anything is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slime_ray.errors import NonFiniteError
from slime_ray.overrides import load_recipe
from slime_ray.training.fit import train


def test_a_last_step_that_ruins_the_model_is_not_kept(
    write_recipe: Callable[..., Path], held_out_file: Path, tmp_path: Path
) -> None:
    settings = {"model.dtype": "float32", "training.learning_rate": 1e37, "training.max_steps": 1}
    recipe = load_recipe(write_recipe(settings | {"data.eval": [str(held_out_file)]}))
    message = r"^step 1: the loss on the held-out rows is not finite; lower training\.learning_rate$"
    with pytest.raises(NonFiniteError, match=message):
        train(recipe)
    assert not list((tmp_path / "runs").glob("*/final"))
