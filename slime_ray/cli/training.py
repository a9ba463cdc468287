"""Subcommands that train: data, recipes, runs, scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from slime_ray.cli.terms import Overrides, RecipeFile, print_wide, warn
from slime_ray.errors import RunError
from slime_ray.overrides import load_recipe

if TYPE_CHECKING:
    from slime_ray.training.memory import Fit
    from slime_ray.training.plan import ModelSizes, Plan, Work

app = typer.Typer()
quickstart = typer.Typer(no_args_is_help=True, help="What `make quickstart` starts from.")
app.add_typer(quickstart, name="quickstart", hidden=True)  # the list of commands has to fit one screen

RunsDir = Annotated[str, typer.Option(help="Where run folders are kept: a folder or an fsspec URL.")]


@app.command()
def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", show_default=False)],
    recipe: Annotated[str | None, typer.Option(help="Count tokens as this recipe would.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in preference or SFT data and what is wrong with it."""
    from slime_ray.data import inspection
    from slime_ray.data.inspection_table import render
    from slime_ray.model.source import find_model
    from slime_ray.storage import place

    settings = load_recipe(recipe) if recipe else None
    tokenizer = None
    if settings is not None:
        name = settings.model.tokenizer or settings.model.name
        tokenizer = find_model(name, runs_dir=place(settings.runs_dir)).pinned
    found = inspection.inspect(paths, settings, tokenizer=tokenizer)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        Console().print(render(found))


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    memory: Annotated[float | None, typer.Option(help="GB of a worker's GPU, or of its share of a machine.")] = None,
) -> None:
    """Show what a recipe would do: settings, parameters, memory, steps, skipped rows, the run's name."""
    settings = load_recipe(recipe, overrides or [])
    from slime_ray.storage import named
    from slime_ray.training.plan import make_plan  # loads torch: after the recipe was found to be one

    warn(settings.warnings())
    made = make_plan(settings, named(recipe).parent, room=None if memory is None else int(memory * 1e9))
    warn(made.warnings())
    print(json.dumps(settings.model_dump(mode="json", exclude_none=True), indent=2))
    for name, value in _plan_rows(made, settings.training.pairs_per_step).items():
        print(f"{name:<24} {value}")


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a command that trains this run already.")] = False,
) -> None:
    """Train one stage on Ray Train and print the run's folder; what was trained before is gone on from."""
    from slime_ray.training.fit import train as train_recipe

    settings = load_recipe(recipe, overrides or [])
    warn(settings.warnings())
    print(train_recipe(settings, wait=wait).folder)


@app.command()
def runs(
    runs_dir: RunsDir = "runs",
    prune: Annotated[bool, typer.Option("--prune", help="Remove checkpoints that are of no more use.")] = False,
) -> None:
    """List runs: state, objective, last metrics, parent; or remove what their retention allows."""
    from slime_ray.overview import runs_table
    from slime_ray.pruning import prune as prune_runs
    from slime_ray.storage import disk_errors, place, size_text

    folder = place(runs_dir)
    if not prune:
        table = runs_table(folder, refused := [])
        warn(refused)
        if table.row_count:
            print_wide(table)
        else:
            print(f"no runs in {folder}; name another folder with --runs-dir", file=sys.stderr)
        return
    with disk_errors(folder):
        removed, left = prune_runs(folder)
    for item in removed:
        print(f"removed {item.path} ({size_text(item.size)}): {item.reason}")
    for sentence in left:
        print(f"left alone {sentence}")
    print(f"{size_text(sum(item.size for item in removed))} freed")


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its recipe's.")],
    runs_dir: RunsDir = "runs",
    plot: Annotated[Path | None, typer.Option(help="Draw its metrics into this PNG file.")] = None,
) -> None:
    """Print one run: what it is made from, its metrics, checkpoints and warnings."""
    from slime_ray.overview import pick_run, run_report
    from slime_ray.storage import place

    if plot is not None and not plot.absolute().parent.is_dir():
        raise RunError(f"--plot {plot}: there is no folder {plot.absolute().parent}; make it, or name another file")
    found = pick_run(place(runs_dir), run)
    print_wide(run_report(found))
    if plot is not None:
        from slime_ray.training.plot import plot_run

        print(plot_run(found, plot))


@app.command()
def score(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="run:NAME, a folder or a hub name.")],
    data: Annotated[str, typer.Option(help="Held-out pairs; a row's `check` says what a right answer is.")],
    runs_dir: RunsDir = "runs",
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and answer together.")] = 2048,
    max_new_tokens: Annotated[int, typer.Option(help="Where a generated answer is cut off.")] = 256,
    samples: Annotated[int, typer.Option(help="Print so many prompts with every model's answer.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every answer.")] = False,
) -> None:
    """Compare checkpoints on held-out pairs: likelihoods, preference accuracy, checked answers."""
    from dataclasses import asdict

    from slime_ray.model.source import find_model
    from slime_ray.storage import named, place
    from slime_ray.training import scoreboard
    from slime_ray.training.scoring import check_comparable
    from slime_ray.training.scoring import score as score_model

    folder = place(runs_dir)
    scores = []
    for model in models:
        print(f"scoring {model}", file=sys.stderr)
        options = {"max_length": max_length, "max_new_tokens": max_new_tokens}
        scores.append(score_model(model, data, runs_dir=folder, **options))
    check_comparable(scores)
    if as_json:
        print(json.dumps([asdict(found) for found in scores], indent=2, ensure_ascii=False))
    else:
        Console().print(scoreboard.render(scores, samples=samples))
        for model in models:
            location = named(find_model(model, runs_dir=folder).location)
            print(f"{model}: {location}")
            if (plot := location.parent / "metrics.png").is_file():
                print(f"{'':>{len(model)}}  {plot}")


@quickstart.command("data")
def quickstart_data(folder: Path, seed: int = 0) -> None:
    """Write our own preference and SFT data: four parts that share no prompt."""
    from slime_ray.quickstart.rows import write_parts

    for path in write_parts(folder, seed=seed).values():
        print(path)


@quickstart.command("model")
def quickstart_model(folder: Path, data: Annotated[str, typer.Option(help="SFT rows.")], seed: int = 0) -> None:
    """Train a tokenizer on SFT rows and write a small Llama with random weights for it."""
    from slime_ray.quickstart.models import write_model

    print(write_model(folder, data, seed=seed))


def _plan_rows(plan: Plan, pairs_per_step: int) -> dict[str, str]:
    from slime_ray.training.plan import Unknown

    if isinstance(plan.work, Unknown):
        names = ("run", "steps", "pairs per step", "tokens per step", "train rows", "held out rows")
        rows = dict.fromkeys(names, str(plan.work)) | {"pairs per step": f"{pairs_per_step:,}"}
    else:
        rows = _work_rows(plan.work, pairs_per_step)
    if isinstance(plan.sizes, Unknown):
        rows |= dict.fromkeys(("parameters", "trained parameters", "disk"), str(plan.sizes))
    else:
        rows |= _size_rows(plan.sizes)
    if isinstance(plan.memory, Unknown):
        return rows | dict.fromkeys(("peak memory", "micro-batch"), str(plan.memory))
    return rows | _memory_rows(plan.memory)


def _work_rows(work: Work, pairs_per_step: int) -> dict[str, str]:
    rows = {
        "run": f"{work.run} ({work.state})",
        "steps": f"{work.steps:,}",
        "pairs per step": f"{pairs_per_step:,}",
        "tokens per step": f"{work.tokens_per_step:,.0f} on average",
    }
    for name, facts in {"train": work.train, "held out": work.held_out}.items():
        if facts is None:
            rows[f"{name} rows"] = "none: no evaluation"
            continue
        skipped = ", ".join(f"{reason} {found.count}" for reason, found in facts.skipped.items())
        rows[f"{name} rows"] = f"{facts.rows:,} usable; skipped: {skipped or 'none'}"
        rows[f"{name} rows cut"] = f"prompt {facts.prompt_cut:,}, completion {facts.completion_cut:,}"
    return rows


def _size_rows(sizes: ModelSizes) -> dict[str, str]:
    from slime_ray.storage import size_text

    return {
        "parameters": f"{sizes.parameters:,}",
        "trained parameters": f"{sizes.trained:,}",
        "disk": f"{size_text(sizes.run_bytes)} at most, {size_text(sizes.checkpoint_bytes)} a checkpoint",
    }


def _memory_rows(memory: Fit) -> dict[str, str]:
    from slime_ray.storage import size_text

    checkpointing = "on" if memory.need.checkpointing else "off"
    return {
        "peak memory": f"{size_text(memory.peak)} a worker, {size_text(memory.need.state)} of it weights, gradients, "
        "moments",
        "micro-batch": f"{memory.tokens:,} tokens; gradient checkpointing {checkpointing}",
    }
