"""TOML recipe + dotted overrides (`loss.hard_margin=2.0`): the one way settings enter, for people, search and tests."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from slime_ray.config.evaluation import EvaluationRecipe
from slime_ray.config.pipeline import PipelineRecipe
from slime_ray.config.recipe import Recipe
from slime_ray.config.serving import ServingRecipe
from slime_ray.config.study import StudyRecipe
from slime_ray.errors import ConfigError
from slime_ray.storage import beside, named, read_bytes

_RECIPES_ROOT = ("jobs", "recipes")
# A longer table says nothing in a sentence.
_SHOWN = 60
_Model = TypeVar("_Model", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, a file or what a URL names, and put `dotted.key=value` overrides on top.

    A value is read as TOML (`2.0`, `true`, `["a", "b"]`) and, where it is none, as a plain string. The key `lora=false`
    takes a whole optional section away.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is of the wrong type or range.
        StorageError: its URL does not answer.
    """
    return _load(named(str(path)), overrides, Recipe)


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read an evaluation's recipe in the same way; raises as `load_recipe`."""
    return _load(named(str(path)), overrides, EvaluationRecipe)


def load_serving(path: str | Path, overrides: Sequence[str] = ()) -> ServingRecipe:
    """Read an endpoint's recipe in the same way; raises as `load_recipe`."""
    return _load(named(str(path)), overrides, ServingRecipe)


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineRecipe:
    """Read a pipeline's recipe in the same way; raises as `load_recipe`."""
    return _load(named(str(path)), overrides, PipelineRecipe)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyRecipe:
    """Read a study's recipe in the same way; the recipes that it names are relative to its file. Raises alike."""
    study = _load(named(str(path)), overrides, StudyRecipe)
    judge = study.judge
    if judge is not None:
        places = {"serve": str(beside(path, judge.serve)), "evaluate": str(beside(path, judge.evaluate))}
        judge = judge.model_copy(update=places)
    return study.model_copy(update={"recipe": str(beside(path, study.recipe)), "judge": judge})


def recipe_name(path: Path) -> str:
    """The path below jobs/recipes/ without its suffix, else the file's stem."""
    parts = path.absolute().with_suffix("").parts
    for start in range(len(parts) - 2, 0, -1):
        if parts[start - 1 : start + 1] == _RECIPES_ROOT:
            return "/".join(parts[start + 1 :])
    return path.stem


def _load(path: Path, overrides: Sequence[str], model: type[_Model]) -> _Model:
    values = _read_toml(path)
    for override in overrides:
        put(values, override)
    values["name"] = values.get("name") or recipe_name(path)
    return validated(values, model, where=str(path))


def validated(values: Mapping[str, Any], model: type[_Model], *, where: str) -> _Model:
    """Settings of which no file has to exist, as a recipe of some kind.

    Args:
        values: tables and values, as TOML has them.
        model: of the recipe.
        where: what the sentence of an error begins with.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error, model)}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(path).decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; expected a TOML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); expected a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; expected a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def put(values: dict[str, Any], override: str) -> None:
    """Put one `dotted.key=value` into tables of settings.

    Raises:
        ConfigError: it is not of this form, or a part of its key is a value already.
    """
    key, _, text = override.partition("=")
    keys, table = _keys(key.strip(), override), values
    for depth, part in enumerate(keys[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(keys[:depth])} is a value, not a table of settings")
    value = _parse_value(text.strip())
    if value is False and keys == ["lora"]:
        table.pop("lora", None)
    else:
        table[keys[-1]] = value


def _keys(dotted: str, override: str) -> list[str]:
    """The parts of a key, as TOML has them: a name with a dot in it stands in quotes."""
    keys: list[str] = []
    try:
        found: Any = tomllib.loads(f"{dotted} = 0") if "=" in override else {}
    except tomllib.TOMLDecodeError:
        found = {}
    while isinstance(found, dict):
        if len(found) != 1:
            raise ConfigError(f"override {override!r}: expected dotted.key=value, such as loss.hard_margin=2.0")
        ((name, found),) = found.items()
        keys.append(name)
    return keys


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem that pydantic found, as one sentence; how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "missing":  # it may be what is misspelt
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), first)
    # Pydantic puts the member of a union into the location: a type, or the tag of [loss]. No user wrote it as a key.
    location = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
    if location[:1] == ["loss"] and len(location) > 1:
        location.pop(1)
    key = ".".join(location) or "the recipe"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            neighbours = difflib.get_close_matches(location[-1], _keys_beside(first["loc"], model), n=1, cutoff=0.5)
            meant = [".".join([*location[:-1], each]) for each in neighbours]
            if not meant and len(location) == 1:
                meant = _keys_below(location[0], model)
            return f"{key} is not a setting; {f'did you mean {meant[0]}?' if meant else 'remove it'}{more}"
        case "missing":
            return f"{key} is missing; it has no default, set it in the recipe{more}"
        case "union_tag_invalid":
            context = first.get("ctx", {})
            return f"{key}.kind = {context.get('tag')!r}; expected one of {context.get('expected_tags')}{more}"
        case "value_error":
            said = first["msg"].removeprefix("Value error, ") + more
            if location[-1:] == ["[key]"]:
                return f"{'.'.join(location[:-1])}: {said}"
            shown = repr(first["input"])
            if isinstance(first["input"], dict) and len(shown) > _SHOWN:
                return f"{key}: {said}" if location else said
            return f"{key} = {shown}: {said}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} = {first['input']!r}; expected a table of settings{more}"
        case "too_short":
            at_least = first.get("ctx", {}).get("min_length")
            return f"{key} = {first['input']!r}; expected at least {at_least} of them{more}"
        case _:
            expected = first["msg"].removeprefix("Input should be ")
            return f"{key} = {first['input']!r}; expected {expected}{more}"


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The field names of the section in which `location` ends."""
    sections: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        found = [field.annotation for s in sections for name, field in s.model_fields.items() if name == part]
        tagged = [s for s in sections if (f := s.model_fields.get("kind")) is not None and f.default == part]
        # A part that is no field is a name that the user gave, such as a model's: what it names stands already.
        sections = tagged or [s for annotation in found for s in _sections_in(annotation)] or sections
    return [name for section in sections for name in section.model_fields]


def _keys_below(name: str, model: type[BaseModel]) -> list[str]:
    """Settings of this name in the tables of a recipe."""
    tables = [(table, inner) for table, field in model.model_fields.items() for inner in _sections_in(field.annotation)]
    return [f"{table}.{name}" for table, inner in tables if name in inner.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]
