"""What a job is to do: a recipe and those that it names, as they are here, and the id that follows from them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from slime_ray.config.evaluation import EvaluationRecipe
from slime_ray.config.pipeline import PipelineRecipe
from slime_ray.config.recipe import Recipe
from slime_ray.config.section import Role
from slime_ray.config.serving import ServingRecipe
from slime_ray.config.study import StudyRecipe
from slime_ray.errors import ConfigError
from slime_ray.overrides import load_evaluation, load_recipe, load_serving, recipe_name
from slime_ray.pipeline import recipes as pipelines
from slime_ray.search import loading as studies
from slime_ray.storage import beside, is_url, json_hash, unseen

Kind = Literal["train", "tune", "evaluate", "pipeline"]
AnyRecipe = Recipe | StudyRecipe | EvaluationRecipe | ServingRecipe | PipelineRecipe
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Part:
    """One recipe of a job.

    Attributes:
        file: where it is.
        prefix: what an override's key begins with that is for this recipe; None where none reaches it.
        recipe: its settings.
    """

    file: str
    prefix: str | None
    recipe: AnyRecipe


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting that names a file or folder: how a user calls it, and what it says."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Work:
    """A recipe, its overrides, and every recipe that is behind it.

    Attributes:
        kind: which of jobs/ runs it.
        recipe: its file, relative to this folder, or a URL.
        overrides: dotted.key=value, as they were given.
        name: of the recipe.
        parts: all recipes, this one first.
    """

    kind: Kind
    recipe: str
    overrides: tuple[str, ...]
    name: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, kind: Kind, recipe: str, overrides: Sequence[str]) -> Work:
        """Read a recipe, and those that it names, as the job would.

        Raises:
            ConfigError: one is wrong, or lies where it cannot be sent from.
        """
        parts = tuple(_parts(kind, _here(recipe), overrides))
        for part in parts:
            if not is_url(part.file):
                _check_place(part.file)
        return cls(kind, _here(recipe), tuple(overrides), parts[0].recipe.name, parts)

    def files(self) -> list[str]:
        """The recipes' files that are on this machine, relative to this folder, each once."""
        return list(dict.fromkeys(_here(part.file) for part in self.parts if not is_url(part.file)))

    def named(self, role: Role) -> list[Setting]:
        """Every setting of a role, each once."""
        found = [
            Setting(f"{part.prefix}{key}" if part.prefix is not None else f"{part.file}: {key}", _plain(value))
            for part in self.parts
            for key, value in part.recipe.named(role)
        ]
        return list(dict.fromkeys(found))

    def submission_id(self, content: dict[str, str]) -> str:
        """The id of its first attempt: the same for the same recipes, overrides and files.

        Args:
            content: the hash of each file that is sent beside the recipes, by its name.
        """
        # A study names the recipes behind it, which stand here themselves, as its own file was named.
        named = {"recipe": True, "judge": {"serve": True, "evaluate": True}}
        settings = [
            part.recipe.model_dump(mode="json", exclude=named if isinstance(part.recipe, StudyRecipe) else None)
            for part in self.parts
        ]
        name = re.sub(r"[^A-Za-z0-9_.-]+", ".", self.name)[:_NAME_LENGTH]
        return f"{self.kind}-{name}-{json_hash([self.kind, self.name, settings, content])[:8]}"


def _parts(kind: Kind, recipe: str, overrides: Sequence[str]) -> Iterator[Part]:
    if kind == "train":
        yield Part(recipe, "", load_recipe(recipe, overrides))
    elif kind == "evaluate":
        yield Part(recipe, "", load_evaluation(recipe, overrides))
    elif kind == "tune":
        study, varied = studies.load(recipe, overrides)
        yield Part(recipe, "", study)
        yield Part(study.recipe, "recipe.", varied)
        if study.judge is not None:
            # It is served from where the trials are.
            serving = load_serving(study.judge.serve).model_copy(update={"runs_dir": varied.runs_dir})
            yield Part(study.judge.serve, None, serving)
            yield Part(study.judge.evaluate, None, load_evaluation(study.judge.evaluate))
    else:
        pipeline, train, serve, evaluate = pipelines.read(recipe, overrides)
        yield Part(recipe, "", pipeline)
        for file, each in zip(pipeline.train, train, strict=True):
            yield Part(str(beside(recipe, file)), "train.", each)
        yield Part(str(beside(recipe, pipeline.serve)), "serve.", serve)
        yield Part(str(beside(recipe, pipeline.evaluate)), "evaluate.", evaluate)


def _here(file: str) -> str:
    """A file below this folder, relative to it; a URL as it is."""
    return file if is_url(_plain(file)) else os.path.relpath(_plain(file))


def _plain(name: str) -> str:
    """A name without file://, which stands for a path of whichever machine reads it."""
    return str(unseen(name)) if name.startswith(("file://", "local://")) else name


def _check_place(file: str) -> None:
    """The job has the recipes under the names that they have below this folder, and their own names follow from that.

    Raises:
        ConfigError: the recipe lies outside this folder, or would be called otherwise there.
    """
    here = os.path.normpath(file)
    if here.startswith((os.sep, "..")):
        raise ConfigError(
            f"{file}: lies outside of {Path.cwd()}, or would not be found under this name in the job; submit from a "
            "folder above it, and name it relative to the recipe that names it"
        )
    # Where nothing is above this folder, the name is what it will be in the job.
    called, asked = recipe_name(Path("/") / here), recipe_name(Path(file))
    if called != asked:
        raise ConfigError(
            f"{file}: is called {asked}, but would be {called} in the job; submit from the folder above jobs"
        )
