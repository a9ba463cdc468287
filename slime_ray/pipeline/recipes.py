"""A pipeline's recipes, read and held against each other before anything is begun."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_ray.config.evaluation import EvaluatedConfig, EvaluationRecipe
from slime_ray.config.pipeline import PipelineRecipe
from slime_ray.config.recipe import Recipe
from slime_ray.config.serving import ServingRecipe
from slime_ray.errors import ConfigError
from slime_ray.overrides import load_evaluation, load_pipeline, load_recipe, load_serving
from slime_ray.serving.gateway.keys import Keys, check_host
from slime_ray.storage import beside

_STAGES = ("train", "serve", "evaluate")


@dataclass(frozen=True, slots=True)
class Recipes:
    """The recipes of all stages.

    Attributes:
        train: in order, each after those that it starts from.
        serve: the endpoint's, with those of its models alone that are evaluated.
        evaluate: as it was written: its base_url of a served model stands for the endpoint's.
        served: the served name of every evaluated model that has one.
        certify_pairs: that a certificate is made from; 0: none is made.
    """

    train: tuple[Recipe, ...]
    serve: ServingRecipe
    evaluate: EvaluationRecipe
    served: dict[str, str]
    certify_pairs: int

    def rooted(self, recipe: Recipe) -> Recipe:
        """A training recipe with the model that its chain of runs begins with: what is there before any is trained."""
        by_name = {f"run:{each.name}": each for each in self.train}
        root = recipe
        while root.model.name in by_name:
            root = by_name[root.model.name]
        return starting_from(recipe, root.model.name)

    def serving(self, names: Sequence[str], made: Mapping[str, str]) -> ServingRecipe:
        """The endpoint's recipe with some of its models, those that were made here pinned to their run.

        Args:
            names: served names.
            made: the run's name by its recipe's name.
        """
        models = {name: self.serve.models[name] for name in names}
        pinned = {
            name: config.model_copy(update={"source": pinned_name(config.source, made)})
            for name, config in models.items()
        }
        return self.serve.model_copy(update={"models": pinned})


def load(path: str | Path, overrides: Sequence[str]) -> Recipes:
    """Read a pipeline's recipe and those that it names, relative to its folder.

    An override's key begins with the stage it is for, as in `train.training.seed=1`, `serve.port=8001` and
    `evaluate.evaluations_dir=out`, where `train` stands for all recipes of training; others are the pipeline's own.

    Raises:
        ConfigError: a recipe or an override is wrong, or the recipes do not fit together.
        ServingError: the host needs keys, and there are none.
    """
    pipeline, train, serve, evaluate = read(path, overrides)
    _check_order(train, path)
    where = beside(path, pipeline.evaluate)
    found = matched(train, serve, evaluate, certify_pairs=pipeline.certify_pairs, where=where)
    _check_runs_dirs(train, found.serve, where=beside(path, pipeline.serve))
    return found


def read(
    path: str | Path, overrides: Sequence[str]
) -> tuple[PipelineRecipe, tuple[Recipe, ...], ServingRecipe, EvaluationRecipe]:
    """A pipeline's recipe and those that it names, not yet held against each other; overrides and errors as `load`."""
    own: list[str] = []
    by_stage: dict[str, list[str]] = {stage: [] for stage in _STAGES}
    for override in overrides:
        stage, dot, rest = override.partition(".")
        (by_stage[stage] if dot and stage in by_stage else own).append(rest if dot and stage in by_stage else override)
    pipeline = load_pipeline(path, own)
    train = tuple(load_recipe(beside(path, each), by_stage["train"]) for each in pipeline.train)
    serve = load_serving(beside(path, pipeline.serve), by_stage["serve"])
    return pipeline, train, serve, load_evaluation(beside(path, pipeline.evaluate), by_stage["evaluate"])


def matched(
    train: tuple[Recipe, ...],
    serve: ServingRecipe,
    evaluate: EvaluationRecipe,
    *,
    certify_pairs: int,
    where: Path,
) -> Recipes:
    """Recipes of which it is known which served model is asked under which name.

    Args:
        train, serve, evaluate: as they were written.
        certify_pairs: that a certificate is made from.
        where: the evaluation's file.

    Raises:
        ConfigError: the endpoint serves none of the evaluation's models, or would not let it in.
        ServingError: the host needs keys, and there are none.
    """
    served = _served(serve, evaluate, where=where)
    asked = {name: serve.models[name] for name in serve.models if name in served.values()}
    serve = serve.model_copy(update={"models": asked})
    _check_keys(serve, {name: evaluate.models[name] for name in served}, where=where)
    return Recipes(train, serve, evaluate, served, certify_pairs)


def starting_from(recipe: Recipe, model: str) -> Recipe:
    """The recipe with another model to start from."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": model})})


def pinned_name(source: str, made: Mapping[str, str]) -> str:
    """run:NAME with the very run that was made here, where it was: a newer one may be of other settings."""
    run = made.get(source.removeprefix("run:")) if source.startswith("run:") else None
    return source if run is None else f"run:{run}"


def _check_order(train: Sequence[Recipe], path: str | Path) -> None:
    names = [recipe.name for recipe in train]
    for place, recipe in enumerate(train):
        if recipe.name in names[:place]:
            raise ConfigError(f"{path}: train: two recipes are called {recipe.name}; give one of them another name")
        parent = recipe.model.name.removeprefix("run:") if recipe.model.name.startswith("run:") else None
        if parent in names[place:]:
            raise ConfigError(f"{path}: train: {recipe.name} starts from run:{parent}; put that recipe before it")


def _served(serve: ServingRecipe, evaluate: EvaluationRecipe, *, where: Path) -> dict[str, str]:
    """The served name of each evaluated model that the endpoint has."""
    called = {name: config.model or name for name, config in evaluate.models.items() if config.base_url}
    served = {name: model for name, model in called.items() if model in serve.models}
    there = ", ".join(serve.models)
    if not served:
        raise ConfigError(
            f"{where}: models: the endpoint serves {there}, and none of {', '.join(evaluate.models)} is asked there; "
            "give one of them this name and a base_url"
        )
    urls = {evaluate.models[name].base_url for name in served}
    for name, model in called.items():
        if name not in served and evaluate.models[name].base_url in urls:
            raise ConfigError(f"{where}: models.{name}: the endpoint serves no {model!r}; it serves {there}")
    return served


def _check_runs_dirs(train: Sequence[Recipe], serve: ServingRecipe, *, where: Path) -> None:
    made = {f"run:{recipe.name}": recipe for recipe in train}
    used = [(recipe.name, recipe.model.name, recipe.runs_dir) for recipe in train]
    used += [(f"models.{name}", config.source, serve.runs_dir) for name, config in serve.models.items()]
    for user, source, runs_dir in used:
        if source in made and made[source].runs_dir != runs_dir:
            raise ConfigError(
                f"{where if user.startswith('models.') else user}: runs_dir = {runs_dir!r}, but {source} is made in "
                f"{made[source].runs_dir!r}; expected one runs_dir"
            )


def _check_keys(serve: ServingRecipe, models: Mapping[str, EvaluatedConfig], *, where: Path) -> None:
    """The evaluation has to be let in; a key is never shown."""
    keys = Keys.load(serve.keys)
    check_host(serve.host, keys)
    for name, config in models.items() if keys.required else ():
        variable = config.api_key_env
        held = os.environ.get(variable, "").strip() if variable else ""
        if keys.name_of(held) is None:
            found = "none is set" if variable is None else f"what {variable} holds is none of them"
            raise ConfigError(
                f"{where}: models.{name}.api_key_env: the endpoint asks for one of its keys, and {found}; name a "
                "variable that holds one"
            )
