"""The rows of an ablation and of a sensitivity study: a SLIME recipe with one thing changed in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slime_ray.config.loss import SlimeLossConfig
from slime_ray.config.recipe import Recipe
from slime_ray.errors import ConfigError

FULL = "full SLIME"
"""The recipe as it is: what every other row is compared with."""

POWERS = (1.0, 1.5, 2.0, 2.5, 3.0)
"""The paper's sweep of the exponent (table 5)."""

REJECTED_WEIGHTS = (0.0005, 0.005, 0.01, 0.05, 0.1)
"""From the authors' scripts (0.0005) to the paper (0.1)."""

BASELINES = ("sft", "dpo", "simpo", "ipo", "cpo", "orpo")

# Nobody knows a weight's order of magnitude beforehand (the paper and its authors' scripts differ by 200), so half a
# power of ten and a whole one to both sides.
_WEIGHT_FACTORS = (0.1, 0.3, 3.0, 10.0)
# Steepness and learning rate are scales too, but a factor of 10 in them is another method: one and two doublings.
_SCALE_FACTORS = (0.25, 0.5, 2.0, 4.0)
# Margins and the threshold are nats a token: the same distances for all, as large as the paper's margins apart (0.5).
_NATS = (-1.0, -0.5, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: what differs from the recipe.

    Attributes:
        label: what people call it.
        group: rows that belong together: "" for the recipe itself, "component", "power", "lambda_rejected" or
            "objective" of an ablation; of a sensitivity study the setting that is varied.
        value: of that setting, where it is one number.
        settings: dotted keys; `loss` stands for the whole table. Empty where the row is the recipe itself.
    """

    label: str
    group: str
    value: float | None
    settings: Mapping[str, Any]


def ablation(recipe: Recipe) -> list[Variant]:
    """SLIME without each of its parts (the paper's table 4), its exponent (table 5), its weights, baselines.

    Baselines have their defaults and everything else from the recipe, its learning rate too.

    Raises:
        ConfigError: the recipe is not SLIME's.
    """
    loss = _slime(recipe, "ablate")
    components: list[tuple[str, dict[str, Any]]] = [
        ("without chosen", {"loss.lambda_chosen": 0.0}),
        ("without rejected", {"loss.lambda_rejected": 0.0}),
        ("without soft margin", {"loss.soft_gate": False}),
        ("without hard margin", {"loss.hard_factor": False}),
    ]
    return [
        Variant(FULL, "", None, {}),
        *(Variant(label, "component", None, _differing(settings, loss)) for label, settings in components),
        *_swept(loss, "power", POWERS, group="power"),
        *_swept(loss, "lambda_rejected", REJECTED_WEIGHTS, group="lambda_rejected"),
        *(Variant(kind, "objective", None, {"loss": {"kind": kind}}) for kind in BASELINES),
    ]


def sensitivity(recipe: Recipe) -> list[Variant]:
    """Each setting alone at values around the recipe's own.

    lambda_margin is left out: only the lambdas' ratios matter. hard_margin moves with the soft margin, so that the gap
    between them stays; margin_gap moves the soft margin alone. A weight of 0 has no scale: it is varied around the
    paper's.

    Raises:
        ConfigError: the recipe is not SLIME's.
    """
    loss, rate = _slime(recipe, "ablate --sensitivity"), recipe.training.learning_rate
    paper = SlimeLossConfig()
    gap = loss.hard_margin - loss.soft_margin
    variants = [Variant(FULL, "", None, {})]
    for weight in ("lambda_chosen", "lambda_rejected"):
        centre = getattr(loss, weight) or getattr(paper, weight)
        variants += _swept(loss, weight, _times(centre, _WEIGHT_FACTORS), group=weight)
    for margin in _plus(loss.hard_margin, _NATS, above=0.0):
        moved = {"loss.hard_margin": margin, "loss.soft_margin": _tidy(margin - gap)}
        variants.append(Variant(f"hard_margin {margin:g}", "hard_margin", margin, moved))
    for other in dict.fromkeys([0.0, *_plus(gap, (-0.25, 0.5, 1.0), above=0.0)]):
        if other != _tidy(gap):
            soft = {"loss.soft_margin": _tidy(loss.hard_margin - other)}
            variants.append(Variant(f"margin_gap {other:g}", "margin_gap", other, soft))
    variants += _swept(loss, "kappa", _times(loss.kappa or paper.kappa, _SCALE_FACTORS), group="kappa")
    variants += _swept(loss, "rejected_threshold", _plus(loss.rejected_threshold, _NATS), group="rejected_threshold")
    variants += [each for each in _swept(loss, "power", POWERS, group="power") if each.settings]
    for value in _times(rate, _SCALE_FACTORS):
        label = f"learning_rate {value:g}"
        variants.append(Variant(label, "learning_rate", value, {"training.learning_rate": value}))
    return variants


def own_value(recipe: Recipe, group: str) -> float | None:
    """The recipe's own value of the setting that a group of rows varies; None for groups that vary none."""
    loss = _slime(recipe, "ablate")
    if group == "margin_gap":
        return _tidy(loss.hard_margin - loss.soft_margin)
    if group == "learning_rate":
        return recipe.training.learning_rate
    return getattr(loss, group, None)


def by_seed(variants: Iterable[Variant], recipe: Recipe, seeds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What has to be trained: a label and settings for each, every distinct setting once.

    All rows under the recipe's own seed come first, then all under the next, so that a study that is ended early has
    something to say about every row.
    """
    distinct: dict[str, Variant] = {}
    for variant in variants:
        distinct.setdefault(repr(sorted(variant.settings.items())), variant)
    for number in range(seeds):
        seed = {"training.seed": recipe.training.seed + number} if number else {}
        for variant in distinct.values():
            label = f"{variant.label}, seed {seed['training.seed']}" if seed else variant.label
            yield label, {**variant.settings, **seed}


def _slime(recipe: Recipe, command: str) -> SlimeLossConfig:
    if isinstance(recipe.loss, SlimeLossConfig):
        return recipe.loss
    raise ConfigError(
        f"loss.kind = {recipe.loss.kind!r}; slime-ray {command} takes SLIME apart: name a recipe of it "
        "(loss.kind = 'slime'); the baselines are among its rows"
    )


def _swept(loss: SlimeLossConfig, key: str, values: Iterable[float], *, group: str) -> list[Variant]:
    return [Variant(f"{key} {value:g}", group, value, _differing({f"loss.{key}": value}, loss)) for value in values]


def _differing(settings: Mapping[str, Any], loss: SlimeLossConfig) -> dict[str, Any]:
    """Without what the recipe has already."""
    return {key: value for key, value in settings.items() if getattr(loss, key.removeprefix("loss.")) != value}


def _times(centre: float, factors: Iterable[float]) -> list[float]:
    return [_tidy(centre * factor) for factor in factors]


def _plus(centre: float, steps: Iterable[float], *, above: float | None = None) -> list[float]:
    values = [_tidy(centre + step) for step in steps]
    return [value for value in values if above is None or value > above]


def _tidy(value: float) -> float:
    """Without what binary fractions leave: 0.3 and not 0.30000000000000004, in names of runs too."""
    return float(f"{value:.10g}")
