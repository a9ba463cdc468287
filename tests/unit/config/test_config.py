"""Settings: defaults, what is legal but odd, and which of them stand in a run's name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from slime_ray.config.data import DataConfig
from slime_ray.config.recipe import SETTINGS_VERSION, Recipe
from slime_ray.config.section import Section

NEEDED: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": ["a.jsonl"]}}


def recipe(**settings: Any) -> Recipe:
    return Recipe.model_validate(NEEDED | settings)


# Defaults are left out of a run's name: with another default an old run would be taken for the new one. Whoever
# changes one raises SETTINGS_VERSION, and then the number here.
VERSION = 1
DEFAULTS = {
    "data": {
        "weights": None,
        "part": "all",
        "limit": None,
        "max_length": 2048,
        "max_prompt_length": None,
        "turns": "last",
        "strict": False,
    },
    "data.split": {"sft": 0.33, "preference": 0.66, "seed": 0},
    "lora": {
        "r": 64,
        "alpha": 128,
        "dropout": 0,
        "bias": "none",
        "target_modules": "all-linear",
        "modules_to_save": [],
    },
    "model": {"dtype": "auto", "dropout": 0},
    "training": {
        "learning_rate": 5e-7,
        "epochs": 1,
        "max_steps": None,
        "pairs_per_step": 128,
        "scheduler": "linear",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": None,
        "seed": 0,
    },
    "loss": {
        "kind": "slime",
        "lambda_chosen": 0.1,
        "lambda_rejected": 0.1,
        "lambda_margin": 1,
        "rejected_threshold": 1.25,
        "hard_margin": 1.5,
        "soft_margin": 1,
        "kappa": 2.5,
        "power": 2.5,
        "stabilizer_reduction": "sequence",
        "soft_gate": True,
        "hard_factor": True,
    },
}
BASELINES = {
    "sft": {},
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "simpo": {"beta": 2, "gamma": 0.2},
    "cpo": {"beta": 0.1, "cpo_alpha": 1},
    "orpo": {"beta": 0.1},
}


@pytest.mark.parametrize("section", DEFAULTS)
def test_a_default_is_changed_only_with_the_settings_version(section: str) -> None:
    found: Any = recipe(lora={}).model_dump(mode="json")
    for part in section.split("."):
        found = found[part]
    assert {key: found[key] for key in DEFAULTS[section]} == DEFAULTS[section]
    assert SETTINGS_VERSION == VERSION


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baselines_default_too(kind: str) -> None:
    found = recipe(loss={"kind": kind}).loss.model_dump(mode="json")
    assert found == {"kind": kind} | BASELINES[kind]


def test_a_hard_margin_below_the_soft_one_is_legal_but_odd() -> None:
    odd = recipe(loss={"hard_margin": 0.5, "soft_margin": 1.0})
    assert odd.warnings() == [
        "loss.hard_margin = 0.5 is below loss.soft_margin = 1: legal, but the margin loss then ends before its gate "
        "opens; the paper has 1.5 above 1.0"
    ]
    assert recipe(loss={"hard_margin": 1.0, "soft_margin": 1.0}).warnings() == []
    assert recipe(loss={"kind": "dpo"}).warnings() == []


def test_a_recipe_at_its_defaults_names_only_its_objective() -> None:
    assert recipe().result_settings() == {"loss": {"kind": "slime"}}
    said = {
        "loss": {"kind": "slime", "hard_margin": 1.5, "soft_gate": True},
        "training": {"epochs": 1.0, "seed": 0, "max_grad_norm": None},
        "data": NEEDED["data"] | {"max_length": 2048, "split": {"seed": 0}},
    }
    assert recipe(**said).result_settings() == {"loss": {"kind": "slime"}}


def test_settings_that_change_the_result_are_named_nested() -> None:
    settings = {
        "loss": {"kind": "dpo", "beta": 0.3},
        "lora": {"r": 8},
        "training": {"seed": 1, "num_workers": 4, "max_grad_norm": 1.0},
        "data": NEEDED["data"] | {"split": {"seed": 2}, "part": "preference"},
    }
    assert recipe(**settings).result_settings() == {
        "data": {"part": "preference", "split": {"seed": 2}},
        "loss": {"kind": "dpo", "beta": 0.3},
        "lora": {"r": 8},
        "training": {"seed": 1, "max_grad_norm": 1.0},
    }


def test_an_optional_section_counts_with_all_at_its_default() -> None:
    assert recipe(lora={}).result_settings() == {"loss": {"kind": "slime"}, "lora": {}}


def test_places_are_the_settings_that_change_no_result() -> None:
    places = {f"{name}.{key}" for name, section in sections(Recipe) for key in place_keys(section)}
    assert places == {
        "Recipe.name",
        "Recipe.runs_dir",
        "Recipe.checkpoint",
        "Recipe.guard",
        "ModelConfig.name",
        "ModelConfig.tokenizer",
        "ModelConfig.chat_template",
        "ModelConfig.attention",
        "DataConfig.train",
        "DataConfig.eval",
        "TrainingConfig.tokens_per_micro_batch",
        "TrainingConfig.gradient_checkpointing",
        "TrainingConfig.layout",
        "TrainingConfig.compile",
        "TrainingConfig.num_workers",
        "TrainingConfig.cpus_per_worker",
        "TrainingConfig.use_gpu",
        "TrainingConfig.gpus_per_worker",
        "TrainingConfig.log_every",
        "TrainingConfig.max_failures",
        "TrainingConfig.wait_minutes",
        "TrainingConfig.hang_minutes",
    }


def sections(section: type[Section]) -> list[tuple[str, type[Section]]]:
    """A section and those in it, by class name."""
    inner = [field.annotation for field in section.model_fields.values()]
    found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    return [(section.__name__, section), *(entry for kind in found for entry in sections(kind))]


def place_keys(section: type[BaseModel]) -> list[str]:
    extras = {key: field.json_schema_extra for key, field in section.model_fields.items()}
    return [key for key, extra in extras.items() if isinstance(extra, dict) and extra.get("place")]


def test_sections_are_frozen_and_know_their_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().training.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="Extra inputs"):
        recipe(training={"sed": 3})


def test_a_prompt_is_cut_to_half_unless_said() -> None:
    assert DataConfig(train=["a"], max_length=101).prompt_room == 50
    assert DataConfig(train=["a"], max_length=101, max_prompt_length=99).prompt_room == 99


@pytest.mark.parametrize("name", ["a", "a/b", "llama3.2-3b/slime_v1", "ü"])
def test_names_that_nest_folders(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize("name", ["/a", "a/", "a//b", "..", "../a", "a/../b", ".hidden", "a\nb"])
def test_names_that_no_folder_may_have(name: str) -> None:
    with pytest.raises(ValidationError, match="nests folders"):
        recipe(name=name)
