"""The recipes by which a study's best trials are served and judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slime_ray.config.study import StudyRecipe
from slime_ray.errors import ConfigError, DataError, SlimeRayError
from slime_ray.evaluation.report.numbers import Estimate, ModelReport, Report
from slime_ray.search.judged import Judging
from slime_ray.search.judgment import Judgment
from slime_ray.search.trials import Trial
from tests.conftest import write_rows
from tests.evaluations import Rows, question_rows

SERVE = """
port = 0
[models.sft]
source = "run:sft"
cpus = 0.5
max_model_len = 512
[models.other]
source = "run:other"
"""
EVALUATE = """
[models.sft]
base_url = "http://127.0.0.1:8000/v1"
max_tokens = 64
temperature = 0.5
[models.other]
base_url = "http://127.0.0.1:8000/v1"
"""
TRIALS = [Trial(number, "proposed", "", {}, {}, run=f"study/trial-{number:08x}", state="finished") for number in (4, 7)]


def judging(folder: Path, *, serve: str = SERVE, evaluate: str = EVALUATE, questions: Rows | None = None) -> Judging:
    (folder / "serve.toml").write_text(serve)
    path = write_rows(folder / "questions.jsonl", question_rows() if questions is None else questions)
    (folder / "evaluate.toml").write_text(f'questions.path = "{path}"\n{evaluate}')
    judge = {"serve": str(folder / "serve.toml"), "evaluate": str(folder / "evaluate.toml"), "top": 2}
    space = {"loss.kappa": {"low": 1.0, "high": 2.0}}
    study = {"name": "study", "recipe": "r.toml", "heldout": "h.jsonl", "space": space, "judge": judge}
    recipe = StudyRecipe.model_validate(study)
    assert recipe.judge is not None
    return Judging.of(recipe, recipe.judge, runs_dir=folder / "runs")


def test_trials_are_served_and_asked_like_the_first_models(tmp_path: Path) -> None:
    recipes = judging(tmp_path)._recipes(TRIALS)
    assert recipes.train == ()
    assert recipes.serve.runs_dir == str(tmp_path / "runs")
    assert {name: model.source for name, model in recipes.serve.models.items()} == {
        "trial-4": "run:study/trial-00000004",
        "trial-7": "run:study/trial-00000007",
    }
    assert all(model.cpus == 0.5 and model.max_model_len == 512 for model in recipes.serve.models.values())
    assert set(recipes.evaluate.models) == {"trial-4", "trial-7"}
    assert all(model.max_tokens == 64 and model.temperature == 0.5 for model in recipes.evaluate.models.values())
    assert recipes.evaluate.judge.baseline == "trial-4"
    assert recipes.evaluate.name == "study/judged"


def test_a_baseline_is_judged_beside_them(tmp_path: Path) -> None:
    recipes = judging(tmp_path, evaluate=EVALUATE + '[judge]\nbaseline = "other"\n')._recipes(TRIALS)
    assert set(recipes.serve.models) == {"other", "trial-4", "trial-7"}
    assert set(recipes.evaluate.models) == {"other", "trial-4", "trial-7"}
    assert recipes.evaluate.judge.baseline == "other"


def test_wrong_questions_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'questions\.jsonl:1: MT-Bench has no category "words"'):
        judging(tmp_path, questions=[{"question_id": 1, "category": "words", "turns": ["Write."]}]).check()


def test_a_baseline_that_is_not_there_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(SlimeRayError, match="run:other"):
        judging(tmp_path, evaluate=EVALUATE + '[judge]\nbaseline = "other"\n').check()


def test_in_comparisons_the_recipes_own_settings_may_be_the_best() -> None:
    def model(name: str, percent: float) -> ModelReport:
        overall = Estimate(value=percent, low=percent - 5, high=percent + 5, questions=20, judged=40)
        return ModelReport.model_construct(name=name, overall=overall)

    models = [model("trial-2", 61.0), model("trial-1", 30.0)]  # none for the baseline: it meets itself nowhere
    report = Report.model_construct(name="r", scale="wins", baseline="trial-0", models=models, pairs=[], questions=20)
    numbers = {"trial-0": 0, "trial-1": 1, "trial-2": 2}
    found = Judgment.of(report, numbers, page=Path("report.html"))
    assert [(each.number, each.score.value) for each in found.trials] == [(2, 61.0), (0, 50.0), (1, 30.0)]
    assert (found.baseline, found.scale) == (0, "percent won against trial-0")


def test_the_recipes_own_is_judged_beside_the_best_and_once(tmp_path: Path) -> None:
    found = judging(tmp_path)
    trials = [
        replace(
            TRIALS[0],
            number=number,
            origin="proposed" if number else "recipe",
            run=f"study/trial-{number}",
            values={"accuracy": accuracy},
        )
        for number, accuracy in enumerate((0.5, 0.7, 0.9, 0.8))
    ]
    assert [each.number for each in found.chosen(trials, ["accuracy"])] == [0, 2, 3]
    best = replace(trials[0], values={"accuracy": 0.95})
    assert [each.number for each in found.chosen([best, *trials[1:]], ["accuracy"])] == [0, 2]


def test_a_wrong_recipe_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serve\.toml: models\.sft\.cpu is not a setting; did you mean"):
        judging(tmp_path, serve=SERVE.replace("cpus", "cpu"))
