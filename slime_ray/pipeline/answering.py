"""The models' answers in a pipeline: which are missing, and asking for them while their endpoint is up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from slime_ray.config.evaluation import EvaluationRecipe
from slime_ray.evaluation import evaluate
from slime_ray.evaluation.folder import EvaluationFolder
from slime_ray.evaluation.label_files import load_labels
from slime_ray.evaluation.opening import Evaluation, opened, previewed
from slime_ray.evaluation.questions import load_questions
from slime_ray.evaluation.requests.endpoint import Endpoint
from slime_ray.storage import named


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an evaluation is.

    Attributes:
        folder: where it is kept.
        missing: answers that each model owes, of those that owe any.
        reported: whether all of it was judged and reported as its recipe and questions are now.
    """

    folder: EvaluationFolder
    missing: dict[str, int]
    reported: bool


def check(recipe: EvaluationRecipe, *, served: Collection[str]) -> None:
    """Find what an evaluation lacks before hours are spent on what it is to judge.

    Args:
        recipe: the evaluation's.
        served: its models whose endpoint is not up yet.

    Raises:
        ConfigError: a key is not in the environment.
        DataError: questions, prompts, labels or answers cannot be read.
        EndpointError: another endpoint, of a model or a judge, is down or refuses its key.
    """
    with previewed(recipe) as evaluation:
        evaluation.from_files()
        if recipe.judge.labels is not None:
            load_labels(named(recipe.judge.labels))
        others = [model for model in evaluation.models() if model.name not in served]
        asyncio.run(_look([*others, *(judge.endpoint for judge in evaluation.judges())]))


def standing(recipe: EvaluationRecipe, runs: Mapping[str, str]) -> Standing:
    """Look at what is there, without asking anybody.

    Args:
        recipe: the evaluation's.
        runs: the run hashes of served models, under which their answers are kept.

    Raises:
        SlimeRayError: as `check`, but for endpoints.
    """
    with previewed(recipe) as evaluation:
        askings = evaluation.askings(_known(evaluation, runs))
        missing = {asking.endpoint.name: turns for asking in askings if (turns := asking.open_turns())}
        return Standing(evaluation.folder, missing, not missing and _reported(evaluation))


def ask(recipe: EvaluationRecipe, names: Collection[str], *, base_url: str | None = None) -> None:
    """Ask some of the models alone; what they answer is in the store then.

    Args:
        recipe: the evaluation's.
        names: of models that can be asked now.
        base_url: of the endpoint that serves them, instead of their own.

    Raises:
        SlimeRayError: as `evaluate.answer`.
    """
    update = {} if base_url is None else {"base_url": base_url}
    models = {name: config.model_copy(update=update) for name, config in recipe.models.items() if name in names}
    evaluate.answer(recipe.model_copy(update={"models": models}))


def keep(recipe: EvaluationRecipe, runs: Mapping[str, str]) -> None:
    """Write the answers of all models, as the store has them, into the evaluation's folder; raises as `standing`."""
    with opened(recipe) as evaluation:
        askings = evaluation.askings(_known(evaluation, runs))
        asked = [*evaluation.from_files(), *(each for asking in askings for each in asking.results())]
        folder, style = evaluation.folder, evaluation.questions.style
        if folder.write_answers(asked, models=recipe.models, style=style, turns=evaluation.turns):
            folder.note_unfinished(evaluate.JUDGMENTS, "the answers are newer")
        folder.note_runs(runs)


def _known(evaluation: Evaluation, runs: Mapping[str, str]) -> list[Endpoint]:
    """The models, told which run stands behind them without being asked."""
    models = evaluation.models()
    for model in models:
        model.run = runs.get(model.name)
    return models


def _reported(evaluation: Evaluation) -> bool:
    folder = evaluation.folder
    about = folder.about()
    return (
        about.partial is None
        and about.recipe == evaluation.recipe.model_dump(mode="json", exclude_defaults=True)
        and folder.judged
        and folder.failures.stat().st_size == 0
        and load_questions(folder.questions).hash == evaluation.questions.hash
        and (folder.path / "report.json").exists()
        and (folder.path / "report.html").exists()
    )


async def _look(endpoints: Collection[Endpoint]) -> None:
    async with AsyncExitStack() as stack:
        for endpoint in endpoints:
            await stack.enter_async_context(endpoint)
        await asyncio.gather(*(endpoint.look() for endpoint in endpoints))
