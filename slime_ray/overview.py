"""Runs as tables: all of a folder in a line each, and one with its lineage, metrics, checkpoints and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slime_ray.checkpoints import best, read_checkpoints
from slime_ray.errors import RunError
from slime_ray.lease import held_by
from slime_ray.runs import Run, all_runs, read_recipe
from slime_ray.storage import size_text, used_bytes

# Of the many metrics those that tell runs apart.
_COLUMNS = ("eval_loss", "eval_rewards/accuracies", "eval_mean_logps/chosen", "eval_entropy/chosen")
_UNTOLD = {"step", "epoch", "num_tokens", "tokens_per_second", "pairs_per_second", "learning_rate"}


def pick_run(runs_dir: Path, name: str) -> Run:
    """The run that a name means: its own, or its recipe's if that has one run only; finished or not.

    Raises:
        RunError: there is no such run, or the recipe has several.
    """
    name = name.removeprefix("run:")
    runs = all_runs(runs_dir, refused := [])
    found = [run for run in runs if run.name == name] or [run for run in runs if run.recipe == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"{name}: this recipe has {len(found)} runs; name one of {', '.join(r.name for r in found)}")
    if refused:
        raise RunError(f"{name}: no such run in {runs_dir}; {refused[0]}")
    there = f"there are {', '.join(run.name for run in runs)}" if runs else "there is none"
    raise RunError(f"{name}: no such run in {runs_dir}; {there}")


def runs_table(runs_dir: Path, refused: list[str]) -> Table:
    """Every run of a folder: state, objective, steps, last held-out metrics, parent.

    Args:
        runs_dir: the folder that keeps them.
        refused: is given a sentence for each that cannot be read.
    """
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "objective"):
        table.add_column(column, no_wrap=column == "run")
    for column in ("step", *(name.removeprefix("eval_") for name in _COLUMNS)):
        table.add_column(column, justify="right")
    table.add_column("parent")
    for run in all_runs(runs_dir, refused):
        try:
            table.add_row(*_row(run))
        except RunError as error:
            refused.append(str(error))
    return table


def _row(run: Run) -> list[RenderableType]:
    lineage, last = run.lineage(), run.last_metrics()
    assert lineage is not None
    numbers = [f"{last[name]:.3f}" if name in last else "" for name in _COLUMNS]
    facts = [run.state(), read_recipe(run).loss.kind, f"{last.get('step', 0):.0f}"]
    return [Text(run.name), *facts, *numbers, Text(lineage.parent or "")]


def run_report(run: Run) -> RenderableType:
    """One run: what it is made from, its metrics, checkpoints, and what happened to it."""
    parts: list[RenderableType] = [_facts(run), "", _metrics(run)]
    checkpoints = _checkpoints(run)
    if checkpoints.row_count:
        parts += ["", checkpoints]
    events = [Text(line) for line in _events(run)]
    return Group(*parts, "", *events)


def _facts(run: Run) -> Table:
    lineage, recipe = run.lineage(), read_recipe(run)
    assert lineage is not None
    rows = {"run": run.name, "state": run.state(), "objective": recipe.loss.kind, "parent": lineage.parent or "none"}
    rows |= {"starting model": recipe.model.name, "data": ", ".join(recipe.data.train)}
    rows |= {"data hash": lineage.data[:16], "model hash": lineage.model[:16]}
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in lineage.versions.items())
    if (holder := held_by(run.lease)) is not None:
        rows["held by"] = f"process {holder.pid} on {holder.host}"
    if (manifest := run.manifest()) is not None:
        rows |= {"finished": manifest.finished, "workers lost": f"{manifest.failures} times", "model": str(run.final)}
    rows["disk"] = size_text(used_bytes(run.folder))
    return _two_columns(rows)


def _two_columns(rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _metrics(run: Run) -> Table:
    first: dict[str, float] = {}
    for line in run.metrics():
        first = line | first
    last = run.last_metrics()
    table = Table("metric", box=None, pad_edge=False)
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    for name in sorted(last.keys() - _UNTOLD):
        table.add_row(name, f"{first[name]:.4g}", f"{last[name]:.4g}")
    return table


def _checkpoints(run: Run) -> Table:
    settings = read_recipe(run).checkpoint
    table = Table("checkpoint", box=None, pad_edge=False)
    for column in ("size", settings.best_metric, ""):
        table.add_column(column, justify="right")
    complete, _ = read_checkpoints(run.checkpoints, run=run.hash)
    for checkpoint in complete:
        value = checkpoint.manifest.evaluation.get(settings.best_metric)
        size = sum(file["size"] for file in checkpoint.manifest.files.values())
        number = f"{value:.4g}" if value is not None else ""
        table.add_row(
            checkpoint.folder.name, size_text(size), number, "best" if checkpoint is best(complete, settings) else ""
        )
    return table


def _events(run: Run) -> Iterator[str]:
    for event in run.events():
        where = f" at step {event.step}" if event.step is not None else ""
        yield f"{event.time}  {event.kind}{where}" + (f": {event.message}" if event.message else "")
