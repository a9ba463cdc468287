"""The space that a study searches: points in it, and the settings of a recipe that a point stands for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from slime_ray.config.loss import SlimeLossConfig
from slime_ray.config.recipe import Recipe
from slime_ray.config.section import Section
from slime_ray.config.study import ParameterConfig
from slime_ray.errors import ConfigError
from slime_ray.overrides import validated
from slime_ray.search.trials import Origin

# hard_margin - soft_margin: the one coordinate that is no key of a recipe.
GAP = "loss.margin_gap"
_HARD, _SOFT = "loss.hard_margin", "loss.soft_margin"
# So many decimals of a soft margin are kept: 1.3 - 0.9 is to be 0.4.
_DECIMALS = 12
# The paper's defaults, and the authors' scripts where they differ from them (github.com/fpsigma/trl-slime).
_PUBLISHED: dict[Origin, SlimeLossConfig] = {
    "paper": SlimeLossConfig(),
    "authors": SlimeLossConfig(lambda_rejected=0.0005),
}
_WHOSE = {"recipe": "the recipe's own", "paper": "the paper's", "authors": "the authors' code's"}

Values = Mapping[str, Any]
Point = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One coordinate: a range, by orders of magnitude with `log`, of whole numbers with `integer`; or `choices`."""

    key: str
    low: float
    high: float
    log: bool
    integer: bool
    choices: tuple[Any, ...] | None

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        if self.choices is not None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Space:
    """The searched keys of a recipe.

    Attributes:
        values: the recipe that is varied, nested as TOML has it.
        parameters: the coordinates, in the order in which the study's file has them.
    """

    values: Values
    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, values: Values, config: Mapping[str, ParameterConfig], *, where: str) -> Space:
        """The space over a recipe, each bound and choice of which makes a legal recipe.

        Args:
            values: the recipe that is varied.
            config: ranges and choices by dotted key.
            where: what the sentence of an error begins with.

        Raises:
            ConfigError: a key is unknown or changes no result, or a bound or choice is no value of it.
        """
        base = validated(values, Recipe, where=where)
        if GAP in config and not isinstance(base.loss, SlimeLossConfig):
            raise ConfigError(f"{where}: {GAP} is SLIME's, and the recipe's loss.kind is {base.loss.kind}; remove it")
        return cls(values, tuple(_parameter(key, each, values, base, where=where) for key, each in config.items()))

    @property
    def recipe(self) -> Recipe:
        """The recipe that is varied."""
        return validated(self.values, Recipe, where="the recipe")

    def settings(self, point: Point) -> dict[str, Any]:
        """The dotted keys of the recipe that a point changes, with their values."""
        changed = {key: value for key, value in point.items() if key != GAP}
        base = self.recipe
        if GAP in point:
            changed[_SOFT] = round(changed.get(_HARD, value_at(base, _HARD)) - point[GAP], _DECIMALS)
        return {key: value for key, value in changed.items() if value != value_at(base, key)}

    def known(self) -> tuple[list[tuple[Origin, dict[str, Any]]], list[str]]:
        """The points that are tried first: the recipe's own, the paper's and the authors' settings.

        Returns:
            The points that the space holds, by whose they are, and a sentence for each one that it does not hold.
        """
        base = self.recipe
        own = {each.key: _coordinate(base, each.key) for each in self.parameters}
        found: list[tuple[Origin, dict[str, Any], SlimeLossConfig | None]] = [("recipe", own, None)]
        if isinstance(base.loss, SlimeLossConfig):
            for origin, loss in _PUBLISHED.items():
                theirs = base.model_copy(update={"loss": loss})
                found.append((origin, {each.key: _coordinate(theirs, each.key) for each in self.parameters}, loss))
        points, sentences = [], []
        for origin, point, loss in found:
            against = [
                f"{each.key} = {point[each.key]} is not in {each}"
                for each in self.parameters
                if not each.holds(point[each.key])
            ] or self._fixed(point, loss)
            if against:
                sentences.append(f"{_WHOSE[origin]} settings are not tried: {', '.join(against)}")
            else:
                points.append((origin, point))
        return points, sentences

    def _fixed(self, point: Point, published: SlimeLossConfig | None) -> list[str]:
        """What the recipe has otherwise than a published loss, and the space leaves as it is."""
        if published is None:
            return []
        loss = validated(merged(self.values, self.settings(point)), Recipe, where="the recipe").loss
        ours, theirs = loss.model_dump(), published.model_dump()
        return [
            f"loss.{key} = {ours[key]} in the recipe, not {theirs[key]}" for key in theirs if ours[key] != theirs[key]
        ]


def merged(values: Values, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with others at some dotted keys; a table takes the place of the one that was there."""
    result = deepcopy(dict(values))
    for key, value in settings.items():
        *tables, last = key.split(".")
        table = result
        for name in tables:
            inner = table.get(name)
            table[name] = table = dict(inner) if isinstance(inner, Mapping) else {}
        table[last] = value
    return result


def value_at(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key; None below an optional section that is not there."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name) if isinstance(found, BaseModel) else None
    return list(found) if isinstance(found, tuple) else found  # as a file has it


def _coordinate(recipe: Recipe, key: str) -> Any:
    if key == GAP:
        return round(value_at(recipe, _HARD) - value_at(recipe, _SOFT), _DECIMALS)
    return value_at(recipe, key)


def _parameter(key: str, config: ParameterConfig, values: Values, base: Recipe, *, where: str) -> Parameter:
    given = config.choices if config.choices is not None else (config.low, config.high)
    if key == GAP:
        hard = value_at(base, _HARD)
        recipes = [validated(merged(values, {_SOFT: _minus(hard, gap, where)}), Recipe, where=where) for gap in given]
        integer = False
    else:
        recipes = [validated(merged(values, {key: value}), Recipe, where=where) for value in given]
        read = [value_at(recipe, key) for recipe in recipes]
        for value, got in zip(given, read, strict=True):
            _check_type(key, value, got, where=where)
        integer = config.choices is None and all(isinstance(got, int) for got in read)
        if config.choices is None and any(isinstance(got, bool) for got in read):
            raise ConfigError(f"{where}: {key} is true or false and has no range; expected choices = [true, false]")
    if len({str(recipe.result_settings()) for recipe in recipes}) == 1 and not key.startswith(("data.", "model.")):
        raise ConfigError(f"{where}: {key} changes how a run is done and not what comes out of it; remove it")
    if config.choices is not None:
        return Parameter(key, 0.0, 0.0, log=False, integer=False, choices=config.choices)
    assert config.low is not None
    assert config.high is not None
    return Parameter(key, config.low, config.high, log=config.log, integer=integer, choices=None)


def _minus(hard: float, gap: Any, where: str) -> float:
    if isinstance(gap, bool) or not isinstance(gap, int | float):
        raise ConfigError(f"{where}: {GAP} = {gap!r}; expected a number")
    return hard - gap


def _check_type(key: str, given: Any, got: Any, *, where: str) -> None:
    """Pydantic reads "1.5" and true as numbers; in a list of choices they are mistakes."""
    if isinstance(got, Section):
        raise ConfigError(f"{where}: {key} is a table of settings; name one of its keys")
    for kind, expected in ((str, "text"), (bool, "true or false")):
        if isinstance(given, kind) != isinstance(got, kind):
            wanted = expected if isinstance(got, kind) else "a number"
            raise ConfigError(f"{where}: {key} = {given!r}; expected {wanted}")
