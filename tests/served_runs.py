"""What tests of serving share: a base model, and real runs on top of it, trained for one step in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slime_ray.overrides import load_recipe
from slime_ray.runs import Run
from slime_ray.training.fit import train
from tests.conftest import preference_rows, recipe_writer, write_rows, write_tiny_model

# Name -> what its recipe says; all but the last two start from the base.
_RECIPES: dict[str, dict[str, Any]] = {
    "tiny/full": {},
    "tiny/first": {"lora.r": 4},
    "tiny/second": {"lora.r": 8, "lora.alpha": 4.0},
    "tiny/head": {"lora.r": 4, "lora.modules_to_save": ["lm_head"]},
    "tiny/child": {"lora.r": 4, "model.name": "run:tiny/full"},
    "tiny/grandchild": {"lora.r": 4, "model.name": "run:tiny/first"},
}


def write_base(folder: Path) -> Path:
    """A tiny Llama in float32, in folder/base."""
    return write_tiny_model(folder / "base", seed=0)


def train_run(folder: Path, name: str, **settings: Any) -> Run:
    """Train one of the runs, with further settings, in folder/runs."""
    data = write_rows(folder / "pairs.jsonl", preference_rows(9, seed=0))
    write = recipe_writer(folder, model=folder / "base", data=data)
    known = {"name": name, "model.dtype": "float32", "training.max_steps": 1, **_RECIPES.get(name, {})}
    return train(load_recipe(write(known | settings, file=f"{name}.toml")))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
