"""Every recipe in the repository is one, and those of the paper have its settings."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.recipe import Recipe
from slime_ray.overrides import load_evaluation, load_recipe
from slime_ray.training import memory
from slime_ray.training.memory import Fit, MakeModel, Need, measure_need
from slime_ray.training.plan import ModelSizes, Unknown, make_plan

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "jobs" / "recipes"
EVALUATIONS = sorted(
    [*FOLDER.glob("mt-bench/*.toml"), *FOLDER.glob("arena-hard/*.toml"), *FOLDER.glob("*/evaluate.toml")]
)
SERVED = {path for name in ("serve", "pipeline", "study") for path in FOLDER.glob(f"*/{name}.toml")}
RECIPES = sorted(set(FOLDER.glob("**/*.toml")) - set(EVALUATIONS) - SERVED)

# Parameters, and trained ones: of the paper's LoRA with its head in full as in the facts about its models; all of
# SmolLM2's; of Qwen3-0.6B's 28 layers r = 16 of q, k and v, o, and gate, up and down.
PARAMETERS = {
    "llama3.2-3b": (3_212_749_824, 491_257_856),
    "qwen3-4b": (4_022_468_096, 521_076_736),
    "gemma3-4b": (3_880_263_168, 790_462_464),
    "smollm2-135m": (134_515_008, 134_515_008),
    "qwen3-0.6b": (596_049_920, 28 * 16 * (3072 + 2 * 2048 + 3072 + 3 * 4096)),
}


# A worker's GPU of 80 GB, or a workstation.
ROOM = 72 * 10**9


def _measured_once() -> Callable[..., Need]:
    """A folder's recipes train the same model in the same way: what one of them takes, the others take."""
    known: dict[bool, Need] = {}

    def need(recipe: Recipe, make_model: MakeModel, *, shares: Any, checkpointing: bool) -> Need:
        if checkpointing not in known:
            known[checkpointing] = measure_need(recipe, make_model, shares=shares, checkpointing=checkpointing)
        return known[checkpointing]

    return need


NEEDS = {path.parent.name: _measured_once() for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(FOLDER)) for path in RECIPES])
def test_a_recipe_is_planned_where_nothing_but_the_repository_is(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "measure_need", NEEDS[path.parent.name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe(path)
    assert recipe.warnings() == []
    assert recipe.name == str(path.relative_to(FOLDER).with_suffix(""))
    plan = make_plan(recipe, path.parent, room=ROOM)
    named = [recipe.model.name, recipe.model.tokenizer, *recipe.data.train, *recipe.data.eval]
    assert plan.work == Unknown(tuple(name for name in named if name is not None))
    if path.parent.name == "quickstart":
        assert plan.sizes == plan.memory == Unknown((recipe.model.name,))
    else:
        assert isinstance(plan.sizes, ModelSizes)
        assert (plan.sizes.parameters, plan.sizes.trained) == PARAMETERS[path.parent.name]
        assert isinstance(plan.memory, Fit)
        assert plan.memory.warning is None
        assert plan.memory.tokens > 2 * recipe.data.max_length


@pytest.mark.parametrize("path", EVALUATIONS, ids=[str(path.relative_to(FOLDER)) for path in EVALUATIONS])
def test_an_evaluation_s_recipe_loads(path: Path) -> None:
    recipe = load_evaluation(path)
    assert recipe.name == str(path.relative_to(FOLDER).with_suffix(""))
    # A budget stands wherever somebody is paid.
    assert bool(recipe.judge.models) == (recipe.budget.tokens is not None)


def test_the_recipe_of_a_benchmark_loads() -> None:
    assert load_recipe(ROOT / "tests" / "benchmarks" / "align_real_pairs.toml").warnings() == []


# --- The paper's recipes (section 4.1).

BOTH_STAGES = {
    "data.train": ["HuggingFaceH4/ultrafeedback_binarized:train_prefs"],
    "data.split.sft": 0.33,
    "data.split.preference": 0.66,
    "data.split.seed": 0,
    "lora.r": 64,
    "lora.alpha": 128,
    "lora.dropout": 0.0,
    "lora.bias": "none",
    "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora.modules_to_save": ["lm_head"],
    "training.pairs_per_step": 128,
    "training.scheduler": "linear",
    "training.warmup_ratio": 0.0,
    "training.max_grad_norm": None,
    "training.eval_every": 1000,
    "training.seed": 0,
    "training.num_workers": 8,
    "training.use_gpu": True,
}
SFT = {"data.part": "sft", "loss.kind": "sft", "training.epochs": 3}
PREFERENCE = {"data.part": "preference", "training.epochs": 1, "training.learning_rate": 5e-7}
SLIME = {
    "loss.kind": "slime",
    "loss.lambda_chosen": 0.1,
    "loss.lambda_rejected": 0.1,
    "loss.lambda_margin": 1.0,
    "loss.rejected_threshold": 1.25,
    "loss.hard_margin": 1.5,
    "loss.soft_margin": 1.0,
    "loss.kappa": 2.5,
    "loss.power": 2.5,
}
LOSSES = {
    "slime": SLIME,
    "dpo": {"loss.kind": "dpo", "loss.beta": 0.1},
    "simpo": {"loss.kind": "simpo", "loss.beta": 2.0, "loss.gamma": 0.2},
}
# The base model, whose chat template it has, and the learning rate of SFT.
MODELS = {
    "llama3.2-3b": ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct", 2e-4),
    "qwen3-4b": ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", 2.5e-6),
    "gemma3-4b": ("google/gemma-3-4b-pt", "google/gemma-3-4b-it", 2e-4),
}
ABLATIONS = {
    "without-chosen": ("loss.lambda_chosen", 0.0),
    "without-rejected": ("loss.lambda_rejected", 0.0),
    "without-soft-margin": ("loss.soft_gate", False),
    "without-hard-margin": ("loss.hard_factor", False),
}


def setting(recipe: Recipe, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), recipe)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_settings_are_the_paper_s(model: str) -> None:
    name, tokenizer, learning_rate = MODELS[model]
    sft = {"model.name": name, "model.tokenizer": tokenizer, "training.learning_rate": learning_rate}
    stages = {"sft": SFT | sft}
    stages |= {kind: PREFERENCE | {"model.name": f"run:{model}/sft"} | loss for kind, loss in LOSSES.items()}
    for stage, settings in stages.items():
        recipe = load_recipe(FOLDER / model / f"{stage}.toml")
        expected = BOTH_STAGES | settings
        assert {key: setting(recipe, key) for key in expected} == expected


@pytest.mark.parametrize("model", MODELS)
def test_slime_s_settings_can_be_read_in_its_recipe(model: str) -> None:
    stated = flat(tomllib.loads((FOLDER / model / "slime.toml").read_text()))
    assert stated == stated | SLIME


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_differs_from_slime_in_one_setting(model: str, ablation: str) -> None:
    slime, ablated = (
        flat(load_recipe(FOLDER / model / f"{name}.toml").model_dump(exclude={"name"}))
        for name in ("slime", f"slime-{ablation}")
    )
    key, value = ABLATIONS[ablation]
    assert slime[key] != value
    assert ablated == slime | {key: value}


def test_the_control_differs_from_slime_in_its_loss_alone() -> None:
    slime, control = (load_recipe(FOLDER / "quickstart" / f"{name}.toml") for name in ("slime", "sft-continued"))
    assert control == slime.model_copy(update={"name": control.name, "loss": control.loss})
