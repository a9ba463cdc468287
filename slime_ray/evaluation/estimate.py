"""What an evaluation would still ask for and cost, without asking: `slime-ray evaluate --dry-run`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rich.table import Table

from slime_ray.errors import EndpointError
from slime_ray.evaluation.judging import AnswersByModel, Case, LanguageModelJudge
from slime_ray.evaluation.label_files import load_labels
from slime_ray.evaluation.opening import Evaluation
from slime_ray.evaluation.requests.budget import estimated_tokens, money
from slime_ray.evaluation.requests.endpoint import Endpoint
from slime_ray.evaluation.trial import trial_cases
from slime_ray.storage import named

EXPECTED_TOKENS = 400
"""Of an answer or a judgment that is not there yet: about what MT-Bench's have."""
_COUNTED = ("requests", "prompt_tokens", "expected_tokens", "most_tokens")
_TEXT = "abc" * EXPECTED_TOKENS


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one endpoint would still be asked for."""

    endpoint: str
    requests: int
    prompt_tokens: int
    expected_tokens: int
    """Of completions, if they are about as long as usual."""
    most_tokens: int
    """Of completions, if all of them end at max_tokens."""
    expected_money: float | None
    most_money: float | None


def estimate(evaluation: Evaluation) -> list[Estimate]:
    """What is left to ask of each endpoint.

    Tokens are counted by length alone, about a third more than there are in English. An answer that is not there yet is
    taken to have the usual length, and so is a second turn's first answer.

    Raises:
        ConfigError: a key is not in the environment.
        DataError: a file of answers or labels cannot be read or does not fit.
    """
    models, judges = evaluation.models(), evaluation.judges()
    asyncio.run(_look(models))
    found = [_of(asking.endpoint, asking.open_prompts(_TEXT)) for asking in evaluation.askings(models)]
    answers = _answers(evaluation)
    for judge in judges:
        owed = [*_trial(evaluation, judge), *evaluation.cases(judge.endpoint.name, answers)]
        prompts = ("".join(message["content"] for message in case.messages) for case in judge.plan(owed))
        found.append(_of(judge.endpoint, prompts))
    return found


def estimate_table(estimates: Iterable[Estimate], *, currency: str) -> Table:
    """For a terminal: what is left to ask of each endpoint, and in all."""
    table = Table(title="left to ask", title_justify="left")
    table.add_column("endpoint")
    for name in ("requests", "prompt tokens", "completion tokens", "at most", currency, "at most"):
        table.add_column(name, justify="right")
    rows = list(estimates)
    total = Estimate(
        "in all",
        *(sum(getattr(row, name) for row in rows) for name in _COUNTED),
        *(_sum(getattr(row, name) for row in rows) for name in ("expected_money", "most_money")),
    )
    for row in (*rows, total):
        counts = (f"{getattr(row, name):,}" for name in _COUNTED)
        costs = ("no price" if cost is None else f"{cost:.2f}" for cost in (row.expected_money, row.most_money))
        table.add_row(row.endpoint, *counts, *costs)
    return table


async def _look(models: Sequence[Endpoint]) -> None:
    """See which models stand behind the endpoints that are up: it decides which answers are there already."""

    async def look(model: Endpoint) -> None:
        async with model:
            with suppress(EndpointError):
                await model.look()

    await asyncio.gather(*map(look, models))


def _sum(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else sum(cost or 0.0 for cost in known)


def _trial(evaluation: Evaluation, judge: LanguageModelJudge) -> Sequence[Case]:
    config = evaluation.recipe.judge
    if config.labels is None:
        return ()
    pairs = load_labels(named(config.labels))[: config.labels_limit]
    return trial_cases(config, evaluation.prompts, pairs, judge=judge.endpoint.name)


def _answers(evaluation: Evaluation) -> AnswersByModel:
    """All answers, with a text of the usual length where there is none yet."""
    recipe, folder = evaluation.recipe, evaluation.folder
    there = folder.read_answers(name for name in recipe.models if (folder.answers / f"{name}.jsonl").exists())
    given = {
        (asked.model, asked.question.id): tuple(turn.text for turn in asked.turns if turn.failure is None)
        for asked in evaluation.from_files()
    }
    # One that failed is asked again, unless it is a file's.
    return {**dict(_assumed(evaluation)), **{key: turns for key, turns in there.items() if turns}, **given}


def _assumed(evaluation: Evaluation) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    for name in evaluation.recipe.models:
        for question in evaluation.questions.questions:
            yield (name, question.id), (_TEXT,) * len(question.turns)


def _of(endpoint: Endpoint, prompts: Iterable[str]) -> Estimate:
    config = endpoint.config
    counted = [estimated_tokens(prompt) for prompt in prompts]
    requests, prompt_tokens = len(counted), sum(counted)
    expected, most = requests * min(EXPECTED_TOKENS, config.max_tokens), requests * config.max_tokens
    expected_money, most_money = (
        None if config.price is None else money(config.price, prompt_tokens, tokens) for tokens in (expected, most)
    )
    return Estimate(endpoint.key, requests, prompt_tokens, expected, most, expected_money, most_money)
