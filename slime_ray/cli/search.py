"""Subcommands that search: studies over the settings of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from slime_ray.cli.terms import Overrides, RecipeFile, print_wide

app = typer.Typer()

StudyFile = Annotated[str, typer.Argument(metavar="STUDY.toml", show_default=False)]


@app.command()
def tune(study: StudyFile, overrides: Overrides = None) -> None:
    """Search the settings of a training recipe on held-out pairs; the same command goes on with a study.

    An override whose key begins with `recipe.` is for the recipe that is varied: recipe.training.max_steps=100.
    """
    from slime_ray.search.loading import load

    recipes = load(study, overrides or [])
    from slime_ray.search.report.table import study_table
    from slime_ray.search.reporting import REPORT
    from slime_ray.search.shown import Shown
    from slime_ray.search.study import BEST, run_study

    with Shown() as shown:
        folder, found = run_study(*recipes, shown=shown)
    print_wide(study_table(found))
    print(folder / REPORT)
    print(folder / BEST)


@app.command()
def ablate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Move each setting alone, instead of taking parts away.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="That each row is trained with.")] = 5,
    heldout: Annotated[
        str | None, typer.Option(help="Pairs that nothing is trained on; default: data.eval.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where a checked answer is cut off.")] = 256,
    studies_dir: Annotated[str, typer.Option(help="Where the folder with the report is made.")] = "studies",
) -> None:
    """Train SLIME without each of its parts, and other objectives, on the same pairs: which of them matter?"""
    from slime_ray.search.ablation import run_ablation
    from slime_ray.search.report.table import contrasts_table
    from slime_ray.search.reporting import REPORT
    from slime_ray.search.shown import Shown

    with Shown() as shown:
        folder, found = run_ablation(
            recipe,
            overrides or [],
            heldout=heldout,
            seeds=seeds,
            max_new_tokens=max_new_tokens,
            studies_dir=studies_dir,
            alone=sensitivity,
            shown=shown,
        )
    print_wide(contrasts_table(found))
    print(folder / REPORT)
