"""What a study leaves behind: the winner as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.overrides import load_recipe
from slime_ray.search.bench import Bench
from slime_ray.search.loading import load
from slime_ray.search.study import _best_toml
from slime_ray.search.trials import Trial
from tests.studies import WriteStudy


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss.hard_margin": 2.25, "loss.soft_margin": 1.0}, {"loss": {"kind": "dpo", "beta": 0.3}}, {"lora.r": 4}],
)
@pytest.mark.parametrize("lora", [{}, {"lora": {}}], ids=["full", "lora"])
def test_best_toml_is_the_recipe_that_was_trained(
    settings: dict[str, Any], lora: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    study, recipe = load(write_study(settings=lora), [])
    bench = Bench.of(
        study.name,
        recipe,
        studies_dir=study.studies_dir,
        heldout=study.heldout,
        objectives=study.objectives,
        max_new_tokens=8,
    )
    trial = Trial(3, "proposed", "", settings, {}, "finished", "study/trial-1", {"accuracy": 0.75})
    path = tmp_path / "best.toml"
    path.write_text(_best_toml(bench, trial, None))
    found = load_recipe(path)
    assert found.result_settings() == bench.trial_recipe(settings).result_settings()
    assert (found.lora is not None) == ("lora" in lora or "lora.r" in settings)
