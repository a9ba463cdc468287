"""Points, and the settings that they stand for; what is no space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import StudyRecipe
from slime_ray.errors import ConfigError
from slime_ray.overrides import validated
from slime_ray.quickstart.rows import write_parts
from slime_ray.search.heldout import HeldOut, refuse_known
from slime_ray.search.loading import load
from slime_ray.search.objectives import check_reportable
from slime_ray.search.space import Space, merged

RECIPE = {
    "name": "r",
    "model": {"name": "m"},
    "data": {"train": ["d"]},
    "loss": {"lambda_rejected": 0.01, "hard_margin": 2.0, "soft_margin": 1.75},
    "training": {"learning_rate": 3e-4},
}


def space_of(table: dict[str, Any], recipe: dict[str, Any] = RECIPE) -> Space:
    study = validated({"recipe": "r.toml", "heldout": "h", "space": table}, StudyRecipe, where="s.toml")
    return Space.of(recipe, study.space, where="s: space")


MARGINS = {"hard_margin": {"low": 0.5, "high": 3.0}, "margin_gap": {"low": 0.0, "high": 1.5}}


def test_the_gap_is_turned_into_the_soft_margin() -> None:
    space = space_of({"loss": MARGINS})
    assert space.settings({"loss.hard_margin": 1.1, "loss.margin_gap": 0.8}) == {
        "loss.hard_margin": 1.1,
        "loss.soft_margin": 0.3,  # and not 0.30000000000000004
    }
    alone = space_of({"loss": {"margin_gap": MARGINS["margin_gap"]}})
    assert alone.settings({"loss.margin_gap": 0.5}) == {"loss.soft_margin": 1.5}


def test_known_points_are_the_recipes_own_the_papers_and_the_authors() -> None:
    weight = {"low": 1e-4, "high": 0.3, "log": True}
    rate = {"low": 1e-5, "high": 1e-3, "log": True}
    space = space_of({"loss": {**MARGINS, "lambda_rejected": weight}, "training": {"learning_rate": rate}})
    points, left_out = space.known()
    assert left_out == []
    assert [origin for origin, _ in points] == ["recipe", "paper", "authors"]
    own, paper, authors = (space.settings(point) for _, point in points)
    assert own == {}
    # The paper's loss; the learning rate, which a model needs and no paper knows, stays the recipe's.
    assert paper == {"loss.hard_margin": 1.5, "loss.soft_margin": 1.0, "loss.lambda_rejected": 0.1}
    assert authors == paper | {"loss.lambda_rejected": 0.0005}


def test_a_known_point_outside_is_left_out_with_a_sentence() -> None:
    space = space_of({"loss": {"lambda_rejected": {"low": 0.001, "high": 0.05}}})
    points, left_out = space.known()
    assert [origin for origin, _ in points] == ["recipe"]
    assert left_out == [
        "the paper's settings are not tried: loss.lambda_rejected = 0.1 is not in 0.001 to 0.05",
        "the authors' code's settings are not tried: loss.lambda_rejected = 0.0005 is not in 0.001 to 0.05",
    ]


def test_the_papers_settings_are_its_own_or_are_not_tried() -> None:
    space = space_of({"loss": {"lambda_rejected": {"low": 1e-4, "high": 0.3}}})
    points, left_out = space.known()
    assert [origin for origin, _ in points] == ["recipe"]
    assert left_out[0] == (
        "the paper's settings are not tried: loss.hard_margin = 2.0 in the recipe, not 1.5, "
        "loss.soft_margin = 1.75 in the recipe, not 1.0"
    )


def test_whole_numbers_and_choices_are_told_by_the_recipe() -> None:
    space = space_of(
        {
            "lora": {"r": {"low": 4, "high": 64, "log": True}},
            "loss": {"kappa": {"low": 1, "high": 10}, "soft_gate": {"choices": [True, False]}},
        }
    )
    integer = {each.key: each.integer for each in space.parameters}
    assert integer == {"lora.r": True, "loss.kappa": False, "loss.soft_gate": False}


def test_a_table_takes_the_place_of_the_one_that_was_there() -> None:
    recipe = validated(merged(RECIPE, {"loss": {"kind": "dpo", "beta": 0.3}}), Recipe, where="")
    assert recipe.loss.model_dump() == {"kind": "dpo", "beta": 0.3}
    assert RECIPE["loss"]["hard_margin"] == 2.0


WRONG = {
    "misspelt": ({"loss": {"hard_margn": {"low": 1, "high": 2}}}, "did you mean loss.hard_margin?"),
    "unknown table": ({"los": {"kappa": {"low": 1, "high": 2}}}, "los is not a setting; did you mean loss?"),
    "inverted": ({"loss": {"kappa": {"low": 3, "high": 2}}}, "the range from 3 to 2 is empty; expected low below high"),
    "empty": ({"loss": {"kappa": {"low": 2, "high": 2}}}, "the range from 2 to 2 is empty"),
    "half": ({"loss": {"kappa": {"low": 2}}}, "expected {low = ..., high = ...} or {choices = [...]}"),
    "log from 0": ({"loss": {"kappa": {"low": 0, "high": 2, "log": True}}}, "log = true from 0: orders of magnitude"),
    "one choice": ({"loss": {"power": {"choices": [2.0]}}}, "expected at least two different choices"),
    "both": ({"loss": {"power": {"choices": [1.0, 2.0], "low": 1}}}, "has choices and a range"),
    "text for a number": ({"loss": {"power": {"choices": [1.0, "2.5"]}}}, "loss.power = '2.5'; expected a number"),
    "word for a number": ({"loss": {"power": {"choices": [1.0, "two"]}}}, "loss.power = 'two'; expected a valid"),
    "true for a number": ({"loss": {"power": {"choices": [1.0, True]}}}, "loss.power = True; expected a number"),
    "number for true": ({"loss": {"soft_gate": {"choices": [True, 0]}}}, "loss.soft_gate = 0; expected true or false"),
    "range of truth": ({"loss": {"soft_gate": {"low": 0, "high": 1}}}, "loss.soft_gate = 0; expected true or false"),
    "out of a key's range": ({"loss": {"power": {"low": 0.5, "high": 2}}}, "loss.power = 0.5; expected greater than"),
    "fraction for a whole number": ({"lora": {"r": {"low": 4.5, "high": 8}}}, "lora.r = 4.5; expected a valid integer"),
    "a table": ({"loss": {"choices": [{"kind": "slime"}, {"kind": "slime", "power": 2.0}]}}, "name one of its keys"),
    "the seed": ({"training": {"seed": {"low": 0, "high": 9}}}, "training.seed is chance, no setting"),
    "no result": ({"training": {"num_workers": {"low": 1, "high": 2}}}, "changes how a run is done and not what comes"),
    "both margins": (
        {"loss": {"soft_margin": {"low": 0.0, "high": 1.0}, **MARGINS}},
        "loss.margin_gap is hard_margin - soft_margin; leave loss.soft_margin out",
    ),
    "a gap below 0": ({"loss": {"margin_gap": {"low": -0.5, "high": 1.0}}}, "expected 0 or more"),
    "below a value": ({"name": {"x": {"low": 1, "high": 2}}}, "name = {'x': 1}; expected a valid string"),
    "nothing": ({}, "space = {}; expected at least 1 of them"),
}


@pytest.mark.parametrize(("table", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_no_space_is_named(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        space_of(table)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_gap_is_slimes_alone() -> None:
    other = RECIPE | {"loss": {"kind": "dpo"}}
    with pytest.raises(ConfigError, match=r"loss\.margin_gap is SLIME's, and the recipe's loss\.kind is dpo"):
        space_of({"loss": {"margin_gap": MARGINS["margin_gap"]}}, other)


def test_the_bundled_study_searches_slime_on_pairs_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(__file__).parents[3] / "jobs" / "recipes" / "quickstart" / "study.toml"
    study, recipe = load(file, [])
    assert study.name == "quickstart/study"
    space = Space.of(recipe.model_dump(mode="json", exclude_unset=True), study.space, where="study.toml")
    points, left_out = space.known()
    assert left_out == []
    paper = {"loss.lambda_rejected": 0.1}
    assert [space.settings(point) for _, point in points] == [{}, paper, {}]
    searched = {"hard_margin", "margin_gap", "kappa", "lambda_chosen", "lambda_rejected", "rejected_threshold", "power"}
    assert set(study.space) == {f"loss.{key}" for key in searched} | {"training.learning_rate"}

    monkeypatch.chdir(tmp_path)
    write_parts(Path("runs/quickstart/data"), seed=0)
    check_reportable(study.objectives, HeldOut.of(study.heldout))
    refuse_known(study.heldout, recipe.data, stopping=study.stopping is not None)
