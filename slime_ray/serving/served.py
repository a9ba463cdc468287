"""What is served: a checkpoint that was found, checked and named, with the adapters that share its engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slime_ray.config.serving import ServedModelConfig


@dataclass(frozen=True, slots=True)
class Card:
    """What clients may know of a model: /v1/models shows it, and no path is in it.

    Attributes:
        name: what a client calls the model.
        lineage: JSON: run, parent, data (a hash), certificate (passed, failed or missing), scores of evaluations.
    """

    name: str
    lineage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights that are served beside their base, from its engine."""

    card: Card
    folder: str
    rank: int


@dataclass(frozen=True, slots=True)
class Served:
    """One engine's checkpoint.

    Attributes:
        card: its name and lineage.
        location: what vLLM loads: a folder with config.json, or a hub name.
        revision: the commit of a hub name.
        dtype: float32, bfloat16 or float16.
        settings: its table in the recipe.
        adapters: what is served from the same engine.
        copied: the URLs that its files are copies of: they are fetched where the engine runs.
    """

    card: Card
    location: str
    revision: str | None
    dtype: str
    settings: ServedModelConfig
    adapters: tuple[Adapter, ...] = ()
    copied: tuple[str, ...] = ()

    @property
    def cards(self) -> tuple[Card, ...]:
        """Of all that its engine serves."""
        return (self.card, *(adapter.card for adapter in self.adapters))
