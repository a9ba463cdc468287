"""Every recipe in the repository is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.overrides import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*ROOT.glob("jobs/recipes/**/*.toml"), *ROOT.glob("tests/benchmarks/*.toml")])


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_loads_without_a_warning(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.warnings() == []
    if "recipes" in path.parts:
        assert path.with_suffix("").as_posix().endswith(f"jobs/recipes/{recipe.name}")


def test_the_control_differs_from_slime_in_its_loss_alone() -> None:
    slime, control = (load_recipe(ROOT / f"jobs/recipes/quickstart/{name}.toml") for name in ("slime", "sft-continued"))
    assert control == slime.model_copy(update={"name": control.name, "loss": control.loss})
