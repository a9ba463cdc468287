"""`slime-ray ablate`: a SLIME recipe taken apart, or its settings moved one by one, each row with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import Objective
from slime_ray.errors import ConfigError, StudyError
from slime_ray.overrides import load_recipe
from slime_ray.search.bench import Bench
from slime_ray.search.contrasts import Contrasts
from slime_ray.search.course import Wanted, listed
from slime_ray.search.heldout import HeldOut
from slime_ray.search.reporting import report_contrasts
from slime_ray.search.shown import Shown
from slime_ray.search.variants import ablation, by_seed, sensitivity
from slime_ray.search.weights import Weights


def run_ablation(
    path: str | Path,
    overrides: Sequence[str],
    *,
    heldout: str | None,
    seeds: int,
    max_new_tokens: int,
    studies_dir: str,
    alone: bool,
    shown: Shown,
) -> tuple[Path, Contrasts]:
    """Do what an ablation lacks, and write its report; the same command goes on after any end.

    More seeds may be asked for later: those that are there stay.

    Args:
        path: the recipe, SLIME's.
        overrides: of it; the other objectives get them too.
        heldout: pairs that nothing is trained on; None: the recipe's data.eval.
        seeds: the recipe's own and those after it.
        max_new_tokens: where a checked answer is cut off.
        studies_dir: where its folder is made.
        alone: move each setting alone, instead of taking parts away.
        shown: is told what becomes of trials.

    Returns:
        The study's folder and what was found.

    Raises:
        SlimeRayError: the recipe, the data or the cluster do not do; all trials failed.
        Interrupted: SIGTERM or Ctrl-C came; what ran was checkpointed.
    """
    from slime_ray.search.tuning import run_trials  # loads ray: after the recipe was found to be one

    recipe = load_recipe(path, overrides)
    variants = sensitivity(recipe) if alone else ablation(recipe)
    kind = "sensitivity" if alone else "ablation"
    entry = heldout or _own_heldout(recipe, path)
    name, objectives = f"{recipe.name}-{kind}", _reportable(entry)
    bench = Bench.of(
        name, recipe, studies_dir=studies_dir, heldout=entry, objectives=objectives, max_new_tokens=max_new_tokens
    )
    wanted = listed([Wanted("variant", label, settings) for label, settings in by_seed(variants, recipe, seeds)])
    weights = Weights(name, bench.stage.run.runs_dir, objectives, top=0)
    folder = bench.folder
    with bench.held(say=shown.say, rows=kind) as (ledger, lease):
        try:
            run_trials(bench, ledger, wanted, lease=lease, weights=weights, shown=shown)
        finally:  # an ablation takes long: what is there is shown even where it was ended
            trials = ledger.trials()
            found = (
                report_contrasts(
                    folder,
                    name=name,
                    recipe=recipe,
                    objectives=objectives,
                    variants=variants,
                    seeds=seeds,
                    sensitivity=alone,
                )
                if any(trial.state == "finished" for trial in trials)
                else None
            )
        if found is None:
            reason = next((trial.reason for trial in trials if trial.state == "failed"), "")
            raise StudyError(f"{name}: none of {len(trials)} trials finished; the first failed: {reason}")
    return folder, found


def _own_heldout(recipe: Recipe, path: str | Path) -> str:
    if len(recipe.data.eval) == 1:
        return recipe.data.eval[0]
    raise ConfigError(
        f"{path}: the recipe has {len(recipe.data.eval)} entries in data.eval; name held-out pairs with --heldout FILE"
    )


def _reportable(entry: str) -> tuple[Objective, ...]:
    """All that these pairs can say: without a `check` in both parts, nothing about answers."""
    checked: tuple[Objective, ...] = ("checked_sampled", "checked_greedy") if min(HeldOut.of(entry).checks) else ()
    return (*checked, "accuracy", "chosen_logp")
