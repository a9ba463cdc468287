"""A study's recipe and the one that it varies, read before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import StudyRecipe
from slime_ray.overrides import load_recipe, load_study

_VARIED = "recipe."


def load(path: str | Path, overrides: Sequence[str]) -> tuple[StudyRecipe, Recipe]:
    """Read a study's recipe and the training recipe that it varies.

    An override's key that begins with `recipe.` is for the latter, as in `recipe.training.max_steps=100`.

    Raises:
        ConfigError: a recipe or an override is wrong.
    """
    own = [each for each in overrides if not each.startswith(_VARIED)]
    study = load_study(path, own)
    theirs = [each.removeprefix(_VARIED) for each in overrides if each.startswith(_VARIED)]
    return study, load_recipe(study.recipe, theirs)
