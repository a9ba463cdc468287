"""The judged score of a study's best trials: served and evaluated as a pipeline does it, and only these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_ray.config.evaluation import EvaluatedConfig, EvaluationRecipe
from slime_ray.config.pipeline import PipelineRecipe
from slime_ray.config.serving import ServedModelConfig, ServingRecipe
from slime_ray.config.study import JudgeConfig, StudyRecipe
from slime_ray.overrides import load_evaluation, load_serving
from slime_ray.pipeline import answering, endpoint
from slime_ray.pipeline.recipes import Recipes, matched
from slime_ray.pipeline.stages import run_recipes
from slime_ray.search.judgment import Judgment
from slime_ray.search.trials import Trial
from slime_ray.search.weights import first
from slime_ray.serving.sources import resolve
from slime_ray.storage import named

_CERTIFY_PAIRS: int = PipelineRecipe.model_fields["certify_pairs"].default
# Stands for the address of the endpoint that is brought up.
_HERE = "http://127.0.0.1/v1"


@dataclass(frozen=True, slots=True)
class Judging:
    """How trials are judged.

    Attributes:
        serve: the endpoint's recipe; a trial is served like its first model.
        evaluate: the evaluation's recipe; a trial is asked like its first model. Of its models the baseline alone is
            evaluated too.
        where: the evaluation's file.
        top: so many trials are judged, and the recipe's own.
    """

    serve: ServingRecipe
    evaluate: EvaluationRecipe
    where: Path
    top: int

    @classmethod
    def of(cls, study: StudyRecipe, config: JudgeConfig, *, runs_dir: Path) -> Judging:
        """What a study's [judge] says.

        Raises:
            ConfigError: a recipe is wrong, or they do not fit together.
            ServingError: the endpoint's host needs keys, and there are none.
        """
        serve = load_serving(config.serve).model_copy(update={"runs_dir": str(runs_dir)})
        evaluate = load_evaluation(config.evaluate)
        evaluate = evaluate.model_copy(update={"name": f"{study.name}/judged"})
        found = cls(serve, evaluate, named(config.evaluate), config.top)
        found._recipes([])
        return found

    def check(self) -> None:
        """Look at all that is judged with before anything is trained for it.

        Raises:
            ConfigError: a key is not in the environment, or the baseline's model is not there.
            DataError: the questions cannot be read.
            EndpointError: a judge's endpoint is down or refuses its key.
            ServingError: the endpoint could not be brought up.
            ModuleNotFoundError: vLLM is not installed.
        """
        recipes = self._recipes([])
        there = [name for name in recipes.serve.models if name != called(None)]
        if there:
            resolve(recipes.serving(there, {}), say=lambda _: None)
        answering.check(recipes.evaluate, served=recipes.served)
        endpoint.check(recipes.serve)

    def chosen(self, trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
        """Those that are to be judged: the recipe's own, then the best by the first objective."""
        own = [trial for trial in trials if trial.origin == "recipe" and trial.state == "finished"]
        found = {trial.number: trial for trial in [*own, *first(trials, objectives, count=self.top)]}
        return list(found.values())

    def judge(self, trials: Sequence[Trial], *, say: Callable[[str], None]) -> Judgment:
        """Have finished trials judged.

        They answer from one endpoint after another where there is no room for all; what was done before is left out.

        Args:
            trials: two at least; the first one is the baseline if the evaluation names none.
            say: is told what is done.

        Raises:
            SlimeRayError: what serving or judging raises, or no trial has a score; what was finished is kept.
        """
        outcome = run_recipes(self._recipes(trials), say=say)
        numbers = {called(trial): trial.number for trial in trials}
        found = Judgment.of(outcome.report, numbers, page=outcome.page)
        for each in found.trials:
            say(f"trial {each.number} judged: {each.score.value:.2f}, {found.scale}")
        return found

    def _recipes(self, trials: Sequence[Trial]) -> Recipes:
        served = next(iter(self.serve.models.values()), ServedModelConfig(source=""))
        asked = next(iter(self.evaluate.models.values()))
        baseline = self.evaluate.judge.baseline
        names = {called(trial): f"run:{trial.run}" for trial in trials} or {called(None): served.source}
        models = {name: served.model_copy(update={"source": source}) for name, source in names.items()}
        update = {"base_url": _HERE, "model": None, "answers": None}
        evaluated: dict[str, EvaluatedConfig] = {name: asked.model_copy(update=update) for name in names}
        if baseline is None:
            baseline = next(iter(names))
        else:
            evaluated = {baseline: self.evaluate.models[baseline], **evaluated}
        evaluate = self.evaluate.model_copy(
            update={"models": evaluated, "judge": self.evaluate.judge.model_copy(update={"baseline": baseline})}
        )
        serve = self.serve.model_copy(update={"models": {**self.serve.models, **models}})
        return matched((), serve, evaluate, certify_pairs=_CERTIFY_PAIRS, where=self.where)


def called(trial: Trial | None) -> str:
    """What a trial is served and evaluated as."""
    return "trial" if trial is None else f"trial-{trial.number}"
