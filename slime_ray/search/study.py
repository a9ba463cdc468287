"""A study from its first trial to its result: known settings first, then proposals, then how much chance is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import StudyRecipe
from slime_ray.errors import StudyError
from slime_ray.search.bench import Bench
from slime_ray.search.course import Next, Wanted
from slime_ray.search.findings import StudyFindings
from slime_ray.search.judgment import Judgment
from slime_ray.search.reporting import report_study
from slime_ray.search.shown import Shown
from slime_ray.search.space import Space, merged, value_at
from slime_ray.search.trials import SEED, Origin, Trial
from slime_ray.search.weights import Weights, best_of
from slime_ray.storage import write_text
from slime_ray.training.stage import resolve

BEST = "best.toml"


def run_study(study: StudyRecipe, recipe: Recipe, *, shown: Shown) -> tuple[Path, StudyFindings]:
    """Do what a study lacks, from its first trial to best.toml and report; the same command goes on after any end.

    Args:
        study: its recipe.
        recipe: the training recipe that it varies.
        shown: is told what becomes of trials.

    Returns:
        The study's folder and what was found.

    Raises:
        SlimeRayError: the recipe, the space, the data or the cluster do not do; all trials failed.
        Interrupted: SIGTERM or Ctrl-C came; what ran was checkpointed.
    """
    from slime_ray.search.tuning import run_trials  # loads ray: after the recipes were found to be some

    space = Space.of(recipe.model_dump(mode="json", exclude_unset=True), study.space, where=f"{study.name}: space")
    bench = Bench.of(
        study.name,
        recipe,
        studies_dir=study.studies_dir,
        heldout=study.heldout,
        objectives=study.objectives,
        max_new_tokens=study.max_new_tokens,
        stopping=study.stopping,
        concurrent=study.concurrent,
        space=space,
    )
    judging = None
    if study.judge is not None:
        from slime_ray.search.judged import Judging  # loads ray and vLLM

        judging = Judging.of(study, study.judge, runs_dir=bench.stage.run.runs_dir)
    for sentence in space.known()[1]:
        shown.say(sentence)
    weights = Weights(
        study=study.name,
        runs_dir=bench.stage.run.runs_dir,
        objectives=study.objectives,
        top=study.judge.top if study.judge is not None else 1,
    )
    folder = bench.folder
    about = {"space": study.model_dump(mode="json")["space"], "seed": study.seed}
    with bench.held(say=shown.say, **about) as (ledger, lease):
        best, judgment = None, None
        if judging is not None:  # which are to be repeated, is known when the best have been judged
            search = searching(study, space)
            if search(ledger.trials()) is not None:
                judging.check()
            run_trials(bench, ledger, search, lease=lease, weights=weights, shown=shown)
            chosen = judging.chosen(ledger.trials(), study.objectives)
            if len(chosen) > 1:
                _see_trained(bench, chosen, shown)
                judgment = judging.judge(chosen, say=shown.say)
                best = ledger[judgment.trials[0].number]
        following = wanted(study, space, judged=best)
        run_trials(bench, ledger, following, lease=lease, weights=weights, shown=shown)
        best = best or best_of(ledger.trials(), study.objectives)
        if best is None:
            raise StudyError(_none_finished(study.name, ledger.trials()))
        write_text(folder / BEST, _best_toml(bench, best, judgment))
        found = report_study(
            folder, name=study.name, recipe=recipe, objectives=study.objectives, space=space, judgment=judgment
        )
    return folder, found


def _see_trained(bench: Bench, trials: Sequence[Trial], shown: Shown) -> None:
    """Train again those whose weights were removed before a judge wanted them."""
    from slime_ray.training.fit import train

    for trial in trials:
        recipe = bench.trial_recipe(trial.settings)
        if resolve(recipe).run.manifest() is None:
            shown.say(f"trial {trial.number}: trained again for the judge, since its weights were removed")
            train(recipe)


def _distinct(known: Sequence[tuple[Origin, Mapping[str, Any]]]) -> list[tuple[list[Origin], Mapping[str, Any]]]:
    """Known points, each once, with all whose it is."""
    found: list[tuple[list[Origin], Mapping[str, Any]]] = []
    for origin, point in known:
        same = next((origins for origins, other in found if other == point), None)
        if same is None:
            found.append(([origin], point))
        else:
            same.append(origin)
    return found


def wanted(study: StudyRecipe, space: Space, *, judged: Trial | None = None) -> Next:
    """All that is searched, then, once that has ended, repeats under other seeds.

    Args:
        study: its recipe.
        space: that is searched.
        judged: the best by a judge's score; None: the best by the first objective.
    """
    search = searching(study, space)

    def following(trials: Sequence[Trial]) -> Wanted | None:
        searched = [trial for trial in trials if trial.point]
        if (found := search(trials)) is not None:
            return found
        if study.noise is None or any(trial.state == "running" for trial in searched):
            return None
        begun = {trial.label for trial in trials if trial.origin == "seed"}
        best = judged or best_of(searched, study.objectives)
        return next((each for each in _repeats(study, space, searched, best) if each.label not in begun), None)

    return following


def searching(study: StudyRecipe, space: Space) -> Next:
    """Known points first, then proposals."""
    from slime_ray.search.proposals import propose  # loads optuna

    known = _distinct(space.known()[0])

    def following(trials: Sequence[Trial]) -> Wanted | None:
        searched = [trial for trial in trials if trial.point]
        if len(searched) >= study.trials:
            return None
        for origins, point in known:
            if not any(trial.origin == origins[0] for trial in searched):
                return Wanted(origins[0], "", space.settings(point), point, tuple(origins[1:]))
        point = propose(space, searched, objectives=study.objectives, seed=study.seed)
        return Wanted("proposed", "", space.settings(point), point)

    return following


def _repeats(study: StudyRecipe, space: Space, searched: Sequence[Trial], best: Trial | None) -> Iterator[Wanted]:
    """The recipe's own settings and the best, under seeds after the recipe's."""
    assert study.noise is not None
    own = [trial for trial in searched if trial.origin == "recipe" and trial.state == "finished"]
    first = value_at(space.recipe, SEED)
    for trial in dict.fromkeys(each.number for each in [*own, *([best] if best is not None else [])]):
        settings = next(each.settings for each in searched if each.number == trial)
        for seed in range(first + 1, first + study.noise.seeds):
            yield Wanted("seed", f"trial {trial}, seed {seed}", {**settings, SEED: seed})


def _none_finished(name: str, trials: Sequence[Trial]) -> str:
    failed = [trial for trial in trials if trial.state == "failed"]
    first = failed[0] if failed else trials[0]
    return (
        f"{name}: none of {len(trials)} trials finished; the first, trial {first.number}, {first.state}: {first.reason}"
    )


def _best_toml(bench: Bench, best: Trial, judgment: Judgment | None) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in best.values.items())
    judged = f"judged {judgment.trials[0].score.value:.4g} ({judgment.scale}), " if judgment is not None else ""
    head = (
        f"# The best of the study {bench.name}: trial {best.number}, {judged}{figures} on the held-out pairs that "
        "select.\n"
        f"# Its run is {best.run}; `slime-ray train` with this file finds it there, or trains it again.\n"
    )
    return head + "".join(f"{key} = {value}\n" for key, value in _toml(merged(bench.values, best.settings)))


def _toml(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Values as dotted keys with what TOML writes for each."""
    for key, value in values.items():
        dotted = f"{above}.{_key(key)}" if above else _key(key)
        if isinstance(value, Mapping) and value:  # [lora] with nothing in it is not the same as none
            yield from _toml(value, dotted)
        elif value is not None:  # unset, as by default
            yield dotted, json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)
