"""An evaluation that is opened: a recipe with its questions, its folder, and where its requests are kept and paid."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from slime_ray.config.evaluation import EndpointConfig, EvaluationRecipe, PriceConfig
from slime_ray.errors import DataError, SlimeRayError
from slime_ray.evaluation.asking import Asked, Asking, Ledger, from_file
from slime_ray.evaluation.folder import About, EvaluationFolder
from slime_ray.evaluation.judging import AnswersByModel, Case, LanguageModelJudge, cases, turn_prompts
from slime_ray.evaluation.prompts import JudgePrompts, load_prompts
from slime_ray.evaluation.questions import QuestionSet, load_questions, missing_references
from slime_ray.evaluation.requests.budget import Budget
from slime_ray.evaluation.requests.endpoint import Endpoint
from slime_ray.evaluation.requests.remote_store import remote_store
from slime_ray.evaluation.requests.store import Store
from slime_ray.lease import acquire
from slime_ray.storage import disk_errors, is_local, named, place, read_bytes


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A recipe with what it needs."""

    recipe: EvaluationRecipe
    questions: QuestionSet
    prompts: JudgePrompts
    folder: EvaluationFolder
    ledger: Ledger

    @property
    def turns(self) -> int:
        """Turns of a question that are asked: Arena-Hard's way of judging sees the first alone."""
        return 1 if self.recipe.judge.mode == "arena" else 2

    def models(self) -> list[Endpoint]:
        """The endpoints that answer.

        Raises:
            ConfigError: a key is not in the environment.
        """
        return [
            Endpoint(name, f"models.{name}", config, self.recipe.requests)
            for name, config in self.recipe.models.items()
            if config.base_url
        ]

    def judges(self) -> list[LanguageModelJudge]:
        """The judges behind endpoints; raises as `models`."""
        rule, requests = self.recipe.judge.rule, self.recipe.requests
        configs = self.recipe.judge.models.items()
        endpoints = [Endpoint(name, f"judge.models.{name}", config, requests) for name, config in configs]
        return [LanguageModelJudge(endpoint, self.ledger, rule) for endpoint in endpoints]

    def askings(self, endpoints: Sequence[Endpoint]) -> list[Asking]:
        """What the models owe."""
        return [Asking(each, self.questions.questions, self.ledger, turns=self.turns) for each in endpoints]

    def from_files(self) -> list[Asked]:
        """The answers of models that have a file of them; raises DataError where it does not fit."""
        found: list[Asked] = []
        for name, config in self.recipe.models.items():
            if config.answers is not None:
                questions, called = self.questions.questions, config.model or name
                found += from_file(name, named(config.answers), questions, called=called, turns=self.turns)
        return found

    def cases(self, judge: str, answers: AnswersByModel) -> list[Case]:
        """The verdicts that a judge owes on some answers."""
        questions, models = self.questions.questions, list(self.recipe.models)
        return list(cases(self.recipe.judge, questions, answers, judge=judge, models=models, prompts=self.prompts))


@contextmanager
def opened(recipe: EvaluationRecipe) -> Iterator[Evaluation]:
    """Read the questions and hold the evaluation's folder; one in which nothing was done yet goes with an error.

    Raises:
        DataError: the questions or prompts cannot be read, or lack what the judge needs.
        RunError: another process holds the evaluation.
        StorageError: the disk is full or read-only.
    """
    questions, prompts = _inputs(recipe)
    folder, store_file = _places(recipe)
    hint = "wait until it has ended, or stop that process"
    with disk_errors(folder.path, setting="evaluations_dir"):
        what = f"the evaluation {recipe.name}"
        with ExitStack() as stack:
            shared = stack.enter_context(Store(store_file)) if is_local(store_file) else None
            lease = stack.enter_context(acquire(folder.lease, what=what, wait=False, say=say, hint=hint))
            # One behind a URL is for one process at a time.
            store = shared or stack.enter_context(remote_store(store_file, may_write=lambda: lease.look() != "lost"))
            about = folder.about()
            try:
                prices = about.prices | _prices(recipe)
                told = recipe.model_dump(mode="json", exclude_defaults=True)
                folder.note(id=about.id, recipe=told, prices=prices)
                folder.write_questions(questions)
                ledger = Ledger(store, _budget(recipe, about, store), about.id)
                yield Evaluation(recipe, questions, prompts, folder, ledger)
            except SlimeRayError:
                if not folder.begun and not store.payments(about.id):
                    folder.discard()
                    lease.forget()
                raise


@contextmanager
def previewed(recipe: EvaluationRecipe) -> Iterator[Evaluation]:
    """The evaluation as it stands, to look at alone: nothing is held, made or changed; raises as `opened`."""
    questions, prompts = _inputs(recipe)
    folder, store_file = _places(recipe)
    with ExitStack() as stack:
        stack.enter_context(disk_errors(folder.path, setting="evaluations_dir"))
        if not is_local(store_file) or not store_file.exists():
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / store_file.name
            if store_file.exists():
                copy.write_bytes(read_bytes(store_file))
            store_file = copy
        store = stack.enter_context(Store(store_file))
        about = folder.about()
        ledger = Ledger(store, _budget(recipe, about, store), about.id)
        yield Evaluation(recipe, questions, prompts, folder, ledger)


def say(sentence: str) -> None:
    """Tell the user on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def _inputs(recipe: EvaluationRecipe) -> tuple[QuestionSet, JudgePrompts]:
    """The questions, and a prompt for every verdict, before anything is paid for."""
    references = None if recipe.questions.references is None else named(recipe.questions.references)
    found = load_questions(recipe.questions.path, references=references)
    found = replace(found, questions=found.questions[: recipe.questions.limit])
    # Arena-Hard's way of judging shows no references.
    missing = missing_references(found) if recipe.judge.models and recipe.judge.mode != "arena" else []
    if missing:
        more = f", and {len(missing) - 1} more have none" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0].origin}: question {missing[0].id} ({missing[0].category}) has no reference answer{more}; a "
            "judge needs one there: set questions.references"
        )
    prompts = load_prompts(recipe.judge.prompts)
    for question in found.questions:
        turn_prompts(recipe.judge.mode, question, prompts)
    return found, prompts


def _places(recipe: EvaluationRecipe) -> tuple[EvaluationFolder, Path]:
    evaluations = place(recipe.evaluations_dir)
    folder = EvaluationFolder(evaluations / recipe.name)
    # No two processes could share one behind a URL.
    return folder, (evaluations if is_local(evaluations) else folder.path) / "store.sqlite"


def _endpoints(recipe: EvaluationRecipe) -> Mapping[str, EndpointConfig]:
    """Every endpoint of a recipe by its dotted key."""
    asked = {f"models.{name}": config for name, config in recipe.models.items() if config.base_url}
    return {**asked, **{f"judge.models.{name}": config for name, config in recipe.judge.models.items()}}


def _prices(recipe: EvaluationRecipe) -> dict[str, PriceConfig]:
    return {key: config.price for key, config in _endpoints(recipe).items() if config.price is not None}


def _budget(recipe: EvaluationRecipe, about: About, store: Store) -> Budget:
    return Budget(
        recipe.budget, _endpoints(recipe), paid=store.payments(about.id), prices=about.prices | _prices(recipe)
    )
