"""What a study leaves behind: the winner as a recipe, and weights for a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.overrides import load_recipe
from slime_ray.search.bench import Bench
from slime_ray.search.loading import load
from slime_ray.search.shown import Shown
from slime_ray.search.study import _best_toml, _see_trained
from slime_ray.search.trials import Trial
from slime_ray.training.fit import train
from tests.studies import WriteStudy


def bench_of(file: Path) -> Bench:
    study, recipe = load(file, [])
    return Bench.of(
        study.name,
        recipe,
        studies_dir=study.studies_dir,
        heldout=study.heldout,
        objectives=study.objectives,
        max_new_tokens=8,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss.hard_margin": 2.25, "loss.soft_margin": 1.0}, {"loss": {"kind": "dpo", "beta": 0.3}}, {"lora.r": 4}],
)
@pytest.mark.parametrize("lora", [{}, {"lora": {}}], ids=["full", "lora"])
def test_best_toml_is_the_recipe_that_was_trained(
    settings: dict[str, Any], lora: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    bench = bench_of(write_study(settings=lora))
    trial = Trial(3, "proposed", "", settings, {}, "finished", "study/trial-1", {"accuracy": 0.75})
    path = tmp_path / "best.toml"
    path.write_text(_best_toml(bench, trial, None))
    found = load_recipe(path)
    assert found.result_settings() == bench.trial_recipe(settings).result_settings()
    assert (found.lora is not None) == ("lora" in lora or "lora.r" in settings)


def test_weights_that_a_judge_wants_after_all_are_made_again(
    write_study: WriteStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = bench_of(write_study())
    run = train(bench.trial_recipe({}))
    weights = (run.final / "model.safetensors").read_bytes()
    run.discard("trial 0 cannot win any more")
    assert run.manifest() is None
    trial = Trial(0, "recipe", "", {}, {}, "finished", run.name, {"accuracy": 0.75})
    for _ in range(2):
        _see_trained(bench, [trial], Shown())
    assert (run.final / "model.safetensors").read_bytes() == weights
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trial 0")]
    assert said == ["trial 0: trained again for the judge, since its weights were removed"]
