"""SLIME preference optimization on Ray. Importing this loads neither torch nor ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slime_ray.config.recipe import Recipe
    from slime_ray.errors import SlimeRayError
    from slime_ray.objectives.slime import slime
    from slime_ray.overrides import load_recipe
    from slime_ray.training.fit import train

_HOMES = {
    "Recipe": "slime_ray.config.recipe",
    "SlimeRayError": "slime_ray.errors",
    "load_recipe": "slime_ray.overrides",
    "slime": "slime_ray.objectives.slime",
    "train": "slime_ray.training.fit",
}

__all__ = ["Recipe", "SlimeRayError", "load_recipe", "slime", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slime_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
