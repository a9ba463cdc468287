"""The subcommand that does the whole way."""

from __future__ import annotations

import sys

import typer

from slime_ray.cli.terms import Overrides, RecipeFile, print_wide

app = typer.Typer()


@app.command()
def pipeline(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Inspect, train, serve, answer, judge and report, as far as it is not done yet.

    An override's key begins with the stage that it is for: train.training.seed=1 (for all recipes of training),
    serve.port=8001, evaluate.evaluations_dir=out; others are the pipeline's own.
    """
    from slime_ray.evaluation.report.text import table
    from slime_ray.pipeline.stages import run

    outcome = run(recipe, overrides or [], say=lambda line: print(line, file=sys.stderr, flush=True))
    print_wide(table(outcome.report))
    print(outcome.page)
    print(outcome.serve)
