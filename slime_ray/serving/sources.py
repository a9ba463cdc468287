"""What an endpoint serves: a recipe from what a command line names, and the checkpoints that a recipe stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slime_ray.config.serving import ServedModelConfig, ServingRecipe
from slime_ray.errors import ConfigError
from slime_ray.overrides import load_serving, put, validated
from slime_ray.runs import all_runs, find_run
from slime_ray.serving.adapters import engines, rank
from slime_ray.serving.candidate import Candidate, find, folder_name, run_of
from slime_ray.serving.lineage import card, check_certificate
from slime_ray.serving.served import Adapter, Served
from slime_ray.storage import named, place


def recipe_of(arguments: Sequence[str], overrides: Sequence[str] = ()) -> ServingRecipe:
    """The recipe that a command line stands for.

    Args:
        arguments: RECIPE.toml alone, or sources: run:NAME, a run's or recipe's name, a run's folder, a Hugging Face
            folder, the URL of such folders, a hub name with an optional @revision. A folder that is there goes before
            a run of this name.
        overrides: dotted.key=value. With sources, a key of [models.NAME] alone, such as cpus=0.5, is for all.

    Raises:
        ConfigError: a recipe's file stands beside other sources, two sources have one name, or a setting is wrong.
        RunError: there is no finished run of a name.
    """
    files = [argument for argument in arguments if argument.endswith(".toml")]
    if files and len(arguments) > 1:
        raise ConfigError(f"{', '.join(arguments)}: expected one recipe, which names all models, or sources alone")
    if files:
        return load_serving(files[0], overrides)
    if not arguments:
        raise ConfigError("nothing to serve; expected RECIPE.toml, or runs, folders or hub names")
    settings: dict[str, Any] = {}
    for override in overrides:
        put(settings, override)
    runs_dir = place(str(settings.get("runs_dir", ServingRecipe.model_fields["runs_dir"].default)))
    models: dict[str, str] = {}
    for argument in arguments:
        name, source = _named(argument, runs_dir)
        if name in models:
            raise ConfigError(
                f"{models[name]!r} and {source!r} would both be served as {name!r}; give them names in a recipe: "
                "[models.NAME] with source = ..."
            )
        models[name] = source
    values: dict[str, Any] = {"models": {name: {"source": source} for name, source in models.items()}}
    for override in overrides:
        if _is_of_a_model(override):
            for name in models:
                put(values, f"models.{json.dumps(name)}.{override}")
        else:
            put(values, override)
    return validated(values, ServingRecipe, where="the command line")


def resolve(recipe: ServingRecipe, *, say: Callable[[str], None]) -> list[Served]:
    """Find a recipe's checkpoints and see whether they can be served, and from how many engines.

    Args:
        recipe: the endpoint's; with its `force` a failed certificate does not matter.
        say: is told, in a line, of what a user should know: certificates that are missing, adapters that are merged.

    Raises:
        ServingError: a run failed its certificate.
        RunError: there is no such finished run, or it is damaged.
        ModelError: there is no such model, or no chat can be had with it.
    """
    runs_dir = place(recipe.runs_dir)
    found = {name: find(name, settings, runs_dir=runs_dir) for name, settings in recipe.models.items()}
    served = []
    for engine in engines(found, say=say):
        base, dtype = engine.base, _dtype(engine.base, say=say)
        adapters = []
        for each in engine.adapters:
            assert each.adapter is not None
            as_computed = replace(each, settings=base.settings)
            shown = card(as_computed, dtype=dtype, certificate=check_certificate(each, force=recipe.force, say=say))
            adapters.append(Adapter(shown, str(each.adapter), rank(each.adapter)))
        shown = card(base, dtype=dtype, certificate=check_certificate(base, force=recipe.force, say=say))
        copied = tuple(dict.fromkeys(url for each in (base, *engine.adapters) for url in each.copied))
        served.append(Served(shown, base.location, base.revision, dtype, base.settings, tuple(adapters), copied))
    return served


def _named(given: str, runs_dir: Path) -> tuple[str, str]:
    """What a source on a command line is served as, and the source as a recipe has it."""
    if given.startswith("run:"):
        return find_run(runs_dir, given.removeprefix("run:")).recipe, given
    folder = named(given).expanduser()
    if folder.is_dir():
        run = run_of(folder)
        return find_run(*run).recipe if run else folder_name(folder), str(folder)
    if any(given in (run.name, run.recipe) for run in all_runs(runs_dir, [])):
        return find_run(runs_dir, given).recipe, f"run:{given}"
    return given.partition("@")[0], given


def _is_of_a_model(override: str) -> bool:
    key = override.partition("=")[0].partition(".")[0].strip()
    return key in ServedModelConfig.model_fields and key not in ServingRecipe.model_fields


def _dtype(candidate: Candidate, *, say: Callable[[str], None]) -> str:
    asked = candidate.settings.dtype
    if asked != "own":
        return asked
    own = candidate.dtype
    if own == "float64":
        say(f"models.{candidate.name}: stored in float64, which vLLM has not; served in float32")
        return "float32"
    return own
