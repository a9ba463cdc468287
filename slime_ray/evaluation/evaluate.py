"""An evaluation's stages, each from files to files: the judges' trial, the models' answers, the judgments."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack

from slime_ray.config.evaluation import EvaluationRecipe
from slime_ray.errors import ConfigError, EndpointError, Interrupted, JudgeError, SlimeRayError
from slime_ray.evaluation import rubric
from slime_ray.evaluation.agreement import Agreement
from slime_ray.evaluation.asking import Asked, Asking
from slime_ray.evaluation.folder import EvaluationFolder
from slime_ray.evaluation.judging import Case, LanguageModelJudge, judge_by_rubric
from slime_ray.evaluation.label_files import LabelledPair, load_labels
from slime_ray.evaluation.opening import Evaluation, opened, say
from slime_ray.evaluation.requests.endpoint import Endpoint
from slime_ray.evaluation.requests.progress import RequestProgress
from slime_ray.evaluation.requests.work import Job, work_through
from slime_ray.evaluation.trial import agreement, trial_cases
from slime_ray.storage import named

ANSWERS, JUDGMENTS, TRIAL = "answers", "judgments", "judgments of the judges' trial"


def evaluate(recipe: EvaluationRecipe) -> EvaluationFolder:
    """The judges' trial, if the recipe has one, then answers, then judgments.

    Raises:
        JudgeError: a judge agrees too little with people.
        EndpointError: an endpoint is down, refuses the key, or fails every request.
        Interrupted: what was finished is kept.
        DataError, RunError, StorageError: as `opened`, and where files of answers or labels do not fit.
    """
    with opened(recipe) as evaluation:
        given, pairs = evaluation.from_files(), _labels(recipe)
        _run(_evaluate(evaluation, given, pairs))
    return evaluation.folder


def answer(recipe: EvaluationRecipe) -> EvaluationFolder:
    """Ask the models what they have not answered yet; raises as `evaluate`."""

    async def work() -> None:
        async with AsyncExitStack() as stack:
            await _answer(evaluation, await _entered(stack, evaluation.models()), given)

    with opened(recipe) as evaluation:
        given = evaluation.from_files()
        _run(work())
    return evaluation.folder


def judge(recipe: EvaluationRecipe) -> EvaluationFolder:
    """Judge the answers in the folder, after the judges' trial; raises as `evaluate`."""

    async def work() -> None:
        async with AsyncExitStack() as stack:
            judges = evaluation.judges()
            await _entered(stack, [each.endpoint for each in judges])
            if await _trusted(evaluation, judges, pairs):
                await _judge(evaluation, judges)

    with opened(recipe) as evaluation:
        evaluation.folder.read_answers(recipe.models)
        pairs = _labels(recipe)
        _run(work())
    return evaluation.folder


def check_judges(recipe: EvaluationRecipe, pairs: Sequence[LabelledPair]) -> dict[str, Agreement]:
    """How far the recipe's judges agree with people; by judge. Raises as `evaluate`, but for `min_agreement`."""
    if not recipe.judge.models:
        raise ConfigError(f"the recipe {recipe.name} has no judge that could be asked; name one in [judge.models.NAME]")
    found: dict[str, Agreement] = {}

    async def work() -> None:
        async with AsyncExitStack() as stack:
            judges = evaluation.judges()
            await _entered(stack, [each.endpoint for each in judges])
            found.update((await _try(evaluation, judges, pairs))[0])

    with opened(recipe) as evaluation:
        _run(work())
    return found


async def _evaluate(evaluation: Evaluation, given: Sequence[Asked], pairs: Sequence[LabelledPair]) -> None:
    async with AsyncExitStack() as stack:
        judges = evaluation.judges()
        models = await _entered(stack, evaluation.models())
        await _entered(stack, [each.endpoint for each in judges])
        if await _trusted(evaluation, judges, pairs):
            await _answer(evaluation, models, given, judges=judges)
            await _judge(evaluation, judges)


async def _answer(
    evaluation: Evaluation,
    models: Sequence[Endpoint],
    given: Sequence[Asked],
    *,
    judges: Sequence[LanguageModelJudge] = (),
) -> None:
    """Ask what is open; the judges are looked at before anything is paid for them to judge."""
    recipe, folder = evaluation.recipe, evaluation.folder
    askings = evaluation.askings(models)
    await asyncio.gather(*map(_look_at_model, askings))
    total = sum(asking.open_turns() for asking in askings)
    if total:
        await asyncio.gather(*(each.endpoint.look() for each in judges))
    try:
        await _work(evaluation, ANSWERS, [asking.jobs for asking in askings], total=total)
    finally:
        asked = [*given, *(each for asking in askings for each in asking.results())]
        style, turns = evaluation.questions.style, evaluation.turns
        if folder.write_answers(asked, models=recipe.models, style=style, turns=turns):
            folder.note_unfinished(JUDGMENTS, "the answers are newer")
        folder.note_runs({model.name: model.run for model in models})


async def _judge(evaluation: Evaluation, judges: Sequence[LanguageModelJudge]) -> None:
    folder, mode = evaluation.folder, evaluation.recipe.judge.mode
    answers = folder.read_answers(evaluation.recipe.models)
    if not judges:
        folder.write_judgments([judge_by_rubric(case) for case in evaluation.cases(rubric.NAME, answers)], mode=mode)
        folder.note_unfinished(JUDGMENTS, None)
        return
    owed = {each.endpoint.name: evaluation.cases(each.endpoint.name, answers) for each in judges}
    try:
        await _ask_judges(evaluation, JUDGMENTS, judges, owed)
    finally:
        results = [each.result(case) for each in judges for case in owed[each.endpoint.name]]
        folder.write_judgments([found for found in results if found is not None], mode=mode)


async def _ask_judges(
    evaluation: Evaluation, stage: str, judges: Sequence[LanguageModelJudge], owed: Mapping[str, Sequence[Case]]
) -> bool:
    left = [each for each in judges if each.plan(owed[each.endpoint.name])]
    await asyncio.gather(*(each.endpoint.look() for each in left))
    return await _work(evaluation, stage, [each.jobs for each in left], total=sum(len(each.left) for each in left))


async def _try(
    evaluation: Evaluation, judges: Sequence[LanguageModelJudge], pairs: Sequence[LabelledPair]
) -> tuple[dict[str, Agreement], bool]:
    """Ask the judges for pairs that people have labelled; whether the budget has let all be asked."""
    config, prompts = evaluation.recipe.judge, evaluation.prompts
    owed = {each.endpoint.name: trial_cases(config, prompts, pairs, judge=each.endpoint.name) for each in judges}
    whole = await _ask_judges(evaluation, TRIAL, judges, owed)
    return {each.endpoint.name: agreement(each, owed[each.endpoint.name], pairs) for each in judges}, whole


async def _trusted(evaluation: Evaluation, judges: Sequence[LanguageModelJudge], pairs: Sequence[LabelledPair]) -> bool:
    """Whether the judges' trial is done, if there is one; raises JudgeError where one has failed in it."""
    config, folder = evaluation.recipe.judge, evaluation.folder
    folder.note(agreement={})
    if not pairs or not judges:
        return True
    checked, whole = await _try(evaluation, judges, pairs)
    if not whole:
        folder.note_unfinished(JUDGMENTS, "the judges' trial is not done")
        return False
    found = {name: each.agreement.value for name, each in checked.items() if each.agreement is not None}
    percents = {name: value for name, value in found.items() if value is not None}
    folder.note(agreement=percents)
    for name, percent in percents.items():
        if config.min_agreement is not None and percent < config.min_agreement:
            raise JudgeError(
                f"judge.models.{name} agrees with the people of {config.labels} in {percent:.1f} %, below "
                f"judge.min_agreement = {config.min_agreement:g}; nothing was judged: take another judge or prompt"
            )
    return True


async def _work(
    evaluation: Evaluation,
    stage: str,
    streams: Sequence[Callable[[Callable[[str | None], None]], Iterable[Job]]],
    *,
    total: int,
) -> bool:
    """Do what is left of a stage, and say in evaluation.json while it is not all there; whether it is in the end."""
    folder, budget = evaluation.folder, evaluation.ledger.budget
    why: str | None = "it was interrupted"
    noted = stage != TRIAL  # nothing is reported of it but the agreement
    if noted:
        folder.note_unfinished(stage, why)
    try:
        with RequestProgress(f"{evaluation.recipe.name}: {stage}", total=total) as progress:
            whole = await work_through(
                [stream(progress.advance) for stream in streams], workers=evaluation.recipe.requests.concurrency
            )
        why = None if whole else budget.used_up()
    except SlimeRayError as error:
        why = str(error)
        raise
    finally:
        folder.note(cost=budget.report())
        if noted:
            folder.note_unfinished(stage, why)
    if why is not None:
        say(f"warning: the {stage} are not all there: {why}; raise it and run the same command again")
    return why is None


async def _look_at_model(asking: Asking) -> None:
    """See whether the endpoint is there, unless nothing is left to ask it."""
    try:
        await asking.endpoint.look()
    except EndpointError:
        if asking.open_turns():
            raise


async def _entered(stack: AsyncExitStack, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    for endpoint in endpoints:
        await stack.enter_async_context(endpoint)
    return endpoints


def _labels(recipe: EvaluationRecipe) -> Sequence[LabelledPair]:
    config = recipe.judge
    return () if config.labels is None else load_labels(named(config.labels))[: config.labels_limit]


def _run(work: Awaitable[None]) -> None:
    """Run stages to their end; Ctrl-C and SIGTERM end them with what was finished."""

    async def stages() -> None:
        task = asyncio.current_task()
        if threading.current_thread() is threading.main_thread() and task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    try:
        asyncio.run(stages())
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise Interrupted("interrupted; what was finished is kept, the same command goes on") from None
