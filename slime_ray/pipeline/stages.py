"""The stages in order, each left out where what it makes is there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from slime_ray.config.recipe import Recipe
from slime_ray.config.serving import ServingRecipe
from slime_ray.errors import Interrupted
from slime_ray.evaluation import evaluate, reporting
from slime_ray.evaluation.report.numbers import Report
from slime_ray.pipeline import answering, certificates, data, endpoint
from slime_ray.pipeline.recipes import Recipes, load, pinned_name, starting_from
from slime_ray.runs import find_run
from slime_ray.serving.served import Served
from slime_ray.serving.sources import resolve
from slime_ray.storage import place
from slime_ray.training.fit import train
from slime_ray.training.stage import resolve as resolve_stage

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline ends with.

    Attributes:
        report: the judged numbers.
        page: the report as an HTML file.
        serve: the command that serves the best of the models that were served, by score.
    """

    report: Report
    page: Path
    serve: str


def run(path: str | Path, overrides: Sequence[str] = (), *, say: Say) -> Outcome:
    """Do what is missing of a pipeline, from its data to its report.

    All recipes, what they start from, questions, keys and the port are checked before anything is trained. One Ray
    cluster is used by all stages, and only where one of them needs it; the endpoint is up only while models are asked.

    Args:
        path: the pipeline's recipe.
        overrides: dotted.key=value, see `recipes.load`.
        say: is told, in lines, what is done and what is left out.

    Raises:
        SlimeRayError: what one of the stages raises; what was finished is kept.
        ModuleNotFoundError: vLLM is not installed.
        Interrupted: SIGTERM or Ctrl-C came.
    """
    return run_recipes(load(path, overrides), say=say)


def run_recipes(recipes: Recipes, *, say: Say) -> Outcome:
    """As `run`, with recipes that were read; without any of training, the runs that are served are there already."""
    try:
        return _Pipeline(recipes, say).run()
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was finished is kept, the same command goes on") from None


@dataclass(slots=True)
class _Pipeline:
    recipes: Recipes
    say: Say
    made: dict[str, str] = field(default_factory=dict)
    """The run's name by its recipe's name, of those that are finished."""

    def run(self) -> Outcome:
        waiting = self._waiting()
        found = None if waiting else self._standing()
        if found is None or not found.reported:
            self._check(waiting)
        with ExitStack() as stack:
            self._inspect(waiting)
            for recipe in self.recipes.train:
                self._train(recipe, stack)
            self._see_merged()
            found = found or self._standing()
            self._ask(found, stack)
        if found.reported:
            self.say(f"judge, report: left out, {found.folder.path} has them")
            report = Report.model_validate_json((found.folder.path / "report.json").read_bytes())
        else:
            answering.keep(self.recipes.evaluate, self._runs())
            self.say(f"judge: {self.recipes.evaluate.name}")
            report = reporting.write_report(evaluate.judge(self.recipes.evaluate))
        return Outcome(report, found.folder.path / "report.html", self._command(report))

    # --- Before anything is begun.

    def _waiting(self) -> list[Recipe]:
        """The training recipes without a finished run; notes the runs of the others."""
        waiting: list[Recipe] = []
        for recipe in self.recipes.train:
            # Its run has a name only once the run that it starts from is there.
            run = None if _starts_from(recipe, waiting) else resolve_stage(self._pinned(recipe)).run
            if run is None or run.manifest() is None:
                waiting.append(recipe)
            else:
                self.made[recipe.name] = run.name
        return waiting

    def _check(self, waiting: Sequence[Recipe]) -> None:
        for recipe in waiting:
            resolve_stage(self.recipes.rooted(recipe))  # finds its data, template and tokenizer
        later = {f"run:{recipe.name}" for recipe in waiting}
        serve = self.recipes.serve
        if there := [name for name, config in serve.models.items() if config.source not in later]:
            resolve(self.recipes.serving(there, self.made), say=_told_later)
        answering.check(self.recipes.evaluate, served=self.recipes.served)
        endpoint.check(serve)

    # --- Data and training.

    def _inspect(self, waiting: Sequence[Recipe]) -> None:
        entries: dict[str, Recipe] = {}
        for recipe in waiting:
            for entry in recipe.data.train:
                if entry not in entries or recipe.loss.kind != "sft":  # pairs as pairs, where SFT reads them too
                    entries[entry] = self.recipes.rooted(recipe)
        if self.recipes.train and not entries:
            self.say("inspect: left out, all runs are there")
        data.look(entries, say=self.say)

    def _train(self, recipe: Recipe, stack: ExitStack) -> None:
        if recipe.name not in self.made:
            for warning in recipe.warnings():
                self.say(f"warning: {recipe.name}: {warning}")
            self.say(f"train: {recipe.name}")
            if recipe.training.num_workers != 0:
                stack.enter_context(endpoint.cluster())
            self.made[recipe.name] = train(self._pinned(recipe)).name
        self.say(f"train: {place(recipe.runs_dir) / self.made[recipe.name]} is there")

    def _see_merged(self) -> None:
        """See that every run's final/ is whole; training has merged it."""
        for recipe in self.recipes.train:
            runs_dir = place(recipe.runs_dir)
            manifest = find_run(runs_dir, self.made[recipe.name])
            if recipe.lora is not None:
                self.say(f"merge: {runs_dir / manifest.name / 'final'} is the merged model")

    # --- Answers from the endpoint.

    def _ask(self, found: answering.Standing, stack: ExitStack) -> None:
        """Have the models answer what is missing and certify the runs that have no certificate yet."""
        served = self.recipes.served
        uncertified = certificates.missing(self._serving()) if self.recipes.certify_pairs else set[str]()
        due = uncertified | {served[name] for name in found.missing if name in served}
        others = [name for name in found.missing if name not in served]
        if not due and not others:
            self.say("serve, answer: left out, all answers and certificates are there")
        left: Sequence[Served] = [each for each in self._resolved() if due.intersection(endpoint.names(each))]
        if left:
            stack.enter_context(endpoint.cluster())
        while left:
            group = endpoint.placed(left, say=self.say)
            self._ask_together(group, uncertified, missing=found.missing)
            left = left[len(group) :]
        if others:
            self.say(f"answer: {', '.join(others)}")
            answering.ask(self.recipes.evaluate, others)

    def _ask_together(self, group: Sequence[Served], uncertified: set[str], *, missing: dict[str, int]) -> None:
        from slime_ray.serving.endpoint import endpoint as brought_up

        dtypes = {name: each.dtype for each in group for name in endpoint.names(each)}
        recipe = self.recipes.serving(list(dtypes), self.made)
        asked = {name: model for name, model in self.recipes.served.items() if model in dtypes}
        self.say(f"serve: {', '.join(dtypes)}")
        with brought_up(recipe, say=_without_certificates(self.say) if uncertified else self.say) as running:
            variables = {model: self.recipes.evaluate.models[name].api_key_env for name, model in asked.items()}
            for name in sorted(uncertified & dtypes.keys()):
                certificates.make(
                    recipe,
                    name,
                    dtype=dtypes[name],
                    base_url=running.base_url,
                    api_key_env=variables[name],
                    pairs=self.recipes.certify_pairs,
                    say=self.say,
                )
            if owing := [name for name in asked if name in missing]:
                self.say(f"answer: {', '.join(owing)}")
                with endpoint.unwinding():  # asyncio takes SIGTERM, and gives it back as if nobody had had it before
                    answering.ask(self.recipes.evaluate, owing, base_url=running.base_url)
        self.say(f"serve: {', '.join(dtypes)} taken down")

    # --- What is known of the models.

    def _pinned(self, recipe: Recipe) -> Recipe:
        return starting_from(recipe, pinned_name(recipe.model.name, self.made))

    def _serving(self) -> ServingRecipe:
        return self.recipes.serving(list(self.recipes.serve.models), self.made)

    def _resolved(self) -> list[Served]:
        return resolve(self._serving(), say=_told_later)

    def _standing(self) -> answering.Standing:
        return answering.standing(self.recipes.evaluate, self._runs())

    def _runs(self) -> dict[str, str]:
        """The run hash of every evaluated model that is served, as its endpoint tells it."""
        cards = {card.name: card for each in self._resolved() for card in each.cards}
        return {name: cards[model].lineage["run"] for name, model in self.recipes.served.items()}

    def _command(self, report: Report) -> str:
        best = next(model.name for model in report.models if model.name in self.recipes.served)
        recipe = self._serving()
        default = ServingRecipe.model_fields["runs_dir"].default
        elsewhere = [] if recipe.runs_dir == default else [f"runs_dir={recipe.runs_dir}"]
        return shlex.join(["slime-ray", "serve", recipe.models[self.recipes.served[best]].source, *elsewhere])


def _starts_from(recipe: Recipe, others: Sequence[Recipe]) -> bool:
    return recipe.model.name in {f"run:{each.name}" for each in others}


def _told_later(_: str) -> None:
    """The endpoint says the same when it is brought up."""


def _without_certificates(say: Say) -> Say:
    """Leaves out that a certificate is missing, where one is made in a moment."""
    return lambda sentence: None if "has no certificate" in sentence else say(sentence)
