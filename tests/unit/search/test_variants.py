"""Rows of an ablation and of a sensitivity study: the paper's, legal, and each setting trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.recipe import Recipe
from slime_ray.errors import ConfigError
from slime_ray.overrides import load_recipe, validated
from slime_ray.search.space import merged
from slime_ray.search.variants import Variant, ablation, by_seed, own_value, sensitivity
from tests.surfaces import VALUES, recipe_of

RECIPES = Path("jobs/recipes/gemma3-4b")


def row(variants: list[Variant], label: str) -> Variant:
    """The row of a name."""
    return next(each for each in variants if each.label == label)


def trained(variant: Variant) -> Recipe:
    """The recipe that a row is trained by."""
    return validated(merged(VALUES, variant.settings), Recipe, where=variant.label)


@pytest.mark.parametrize("part", ["chosen", "rejected", "soft-margin", "hard-margin"])
def test_components_are_the_papers(part: str) -> None:
    full = load_recipe(RECIPES / "slime.toml")
    bundled = load_recipe(RECIPES / f"slime-without-{part}.toml")
    variant = row(ablation(full), f"without {part.replace('-', ' ')}")
    made = validated(merged(full.model_dump(mode="json", exclude_unset=True), variant.settings), Recipe, where=part)
    assert made.result_settings() == bundled.result_settings()


def test_sweeps_are_the_papers_and_the_recipes_own_value_is_the_recipe() -> None:
    variants = ablation(recipe_of(lambda_rejected=0.005))
    settings = {each.label: each.settings for each in variants}
    powers = [each.value for each in variants if each.group == "power"]
    weights = [each.value for each in variants if each.group == "lambda_rejected"]
    assert powers == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert (weights[0], weights[-1]) == (0.0005, 0.1)
    same = [label for label, each in settings.items() if not each]
    assert same == ["full SLIME", "power 2.5", "lambda_rejected 0.005"]


@pytest.mark.parametrize("kind", ["sft", "dpo", "simpo", "ipo", "cpo", "orpo"])
def test_other_objectives_have_their_defaults_and_the_recipes_learning_rate(kind: str) -> None:
    made = trained(row(ablation(recipe_of()), kind))
    assert made.loss == type(made.loss)()
    assert made.loss.kind == kind
    assert made.training == recipe_of().training


@pytest.mark.parametrize("loss", [{}, {"hard_margin": 0.4, "soft_margin": 0.4, "kappa": 0.0, "lambda_chosen": 0.0}])
def test_each_setting_moves_alone_and_makes_a_legal_recipe(loss: dict[str, Any]) -> None:
    recipe = recipe_of(**loss)
    values = {**VALUES, "loss": {**VALUES["loss"], **loss}}
    for variant in sensitivity(recipe)[1:]:
        made = validated(merged(values, variant.settings), Recipe, where=variant.label)
        gap = round(made.loss.hard_margin - made.loss.soft_margin, 9)  # pyright: ignore[reportAttributeAccessIssue]
        moved = {
            group: own_value(made, group) != own_value(recipe, group)
            for group in ("lambda_chosen", "lambda_rejected", "hard_margin", "kappa", "power", "learning_rate")
        } | {"margin_gap": gap != own_value(recipe, "margin_gap")}
        assert [group for group, has in moved.items() if has] == [variant.group] or (
            variant.group == "rejected_threshold" and not any(moved.values())
        )
        assert variant.value == own_value(made, variant.group)
        assert gap >= 0
        assert made.loss.hard_margin > 0  # pyright: ignore[reportAttributeAccessIssue]
        assert made.warnings() == []


def test_scales_are_moved_by_factors_and_nats_by_steps() -> None:
    variants = sensitivity(recipe_of())
    assert [each.value for each in variants if each.group == "learning_rate"] == [1.25e-4, 2.5e-4, 1e-3, 2e-3]
    assert [each.value for each in variants if each.group == "lambda_rejected"] == [0.01, 0.03, 0.3, 1.0]
    assert [each.value for each in variants if each.group == "kappa"] == [0.625, 1.25, 5.0, 10.0]
    assert [each.value for each in variants if each.group == "hard_margin"] == [0.5, 1.0, 2.0, 2.5]
    assert [each.value for each in variants if each.group == "margin_gap"] == [0.0, 0.25, 1.0, 1.5]


def test_every_setting_is_trained_once_a_seed_and_seeds_come_one_after_another() -> None:
    recipe = recipe_of()
    variants = ablation(recipe)
    wanted = list(by_seed(variants, recipe, 3))
    distinct = {repr(sorted(settings.items())) for _, settings in wanted}
    rows = len(variants) - 2  # power 2.5 and lambda_rejected 0.1 are the recipe itself
    assert len(wanted) == len(distinct) == 3 * rows
    seeds = [settings.get("training.seed") for _, settings in wanted]
    assert seeds == [None] * rows + [1] * rows + [2] * rows
    assert wanted[rows] == ("full SLIME, seed 1", {"training.seed": 1})
    assert len({label for label, _ in wanted}) == len(wanted)


def test_seeds_count_from_the_recipes_own() -> None:
    recipe = validated({**VALUES, "training": {"seed": 41}}, Recipe, where="a test")
    assert {settings.get("training.seed") for _, settings in by_seed(ablation(recipe), recipe, 2)} == {None, 42}


@pytest.mark.parametrize("rows", [ablation, sensitivity])
def test_only_slime_is_taken_apart(rows: Any) -> None:
    recipe = validated({**VALUES, "loss": {"kind": "dpo"}}, Recipe, where="a test")
    with pytest.raises(ConfigError, match=r"loss\.kind = 'dpo'.*name a recipe"):
        rows(recipe)
