"""Runs as they are listed and shown, and which one a name means."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from slime_ray.checkpoints import MANIFEST, CheckpointManifest, folder_of
from slime_ray.config.recipe import Recipe
from slime_ray.errors import RunError
from slime_ray.lease import acquire
from slime_ray.manifest import Lineage
from slime_ray.overview import pick_run, run_report, runs_table
from slime_ray.runs import Run
from slime_ray.storage import folder_files, size_text, used_bytes, write_bytes

LINES = [
    {"step": 0, "eval_loss": 0.75, "eval_rewards/accuracies": 0.25, "eval_mean_logps/chosen": -2.0},
    {"step": 1, "epoch": 0.5, "loss": 0.7, "grad_norm": 12345.678, "learning_rate": 1e-3, "num_tokens": 10},
    {"step": 2, "epoch": 1.0, "loss": 0.5, "tokens_per_second": 9.0, "pairs_per_second": 1.0},
    {"step": 2, "eval_loss": 0.625, "eval_rewards/accuracies": 1.0, "eval_mean_logps/chosen": -1.5},
]


def rendered(what: RenderableType) -> list[str]:
    """What is printed, a line each, without its padding."""
    file = io.StringIO()
    Console(width=200, file=file).print(what)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def begin(runs: Path, name: str, *, digit: str = "1", parent: str | None = None, loss: str = "slime") -> Run:
    """Begin a run and log a few steps."""
    run = Run(runs, name, digit * 64)
    values = {"name": name, "model": {"name": "some/model"}, "data": {"train": ["a.jsonl", "b.jsonl"]}}
    recipe = Recipe.model_validate(values | {"loss": {"kind": loss}, "runs_dir": str(runs)})
    run.begin(recipe, lineage(run, parent))
    for line in LINES:
        run.log(line)
    return run


def lineage(run: Run, parent: str | None = None) -> Lineage:
    versions = {"torch": "2.13.0", "ray": "not installed"}
    values = {"name": run.name, "recipe": run.recipe, "hash": run.hash, "data": "d" * 64, "model": "e" * 64}
    return Lineage.model_validate(values | {"parent": parent, "versions": versions})


def finish(run: Run, parent: str | None = None) -> None:
    write_bytes(run.final / "config.json", b"{}")
    run.note("worker lost", "worker 1 died")
    run.finish(lineage(run, parent))


def save(run: Run, step: int, evaluation: dict[str, float], *, size: int = 1500) -> None:
    folder = folder_of(run.checkpoints, step)
    write_bytes(folder / "model.safetensors", b"w" * size)
    manifest = CheckpointManifest(run=run.hash, step=step, evaluation=evaluation, files=folder_files(folder))
    manifest.write(folder / MANIFEST)


def facts_of(run: Run, lines: list[str]) -> dict[str, str]:
    """The report's first table: what stands beside each name; both columns begin where they do in its first line."""
    second = lines[0].index(run.name)
    return {line[:second].strip(): line[second:] for line in lines[: lines.index("")]}


def test_a_run_is_meant_by_its_name_or_its_recipes(tmp_path: Path) -> None:
    sft, other = begin(tmp_path, "llama/sft"), begin(tmp_path, "sft")
    for name in ("llama/sft", "llama/sft-11111111", "run:llama/sft"):
        assert pick_run(tmp_path, name) == sft
    assert pick_run(tmp_path, "run:sft-11111111") == other


def test_the_name_of_a_run_goes_before_that_of_a_recipe(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft")
    begin(tmp_path, "sft-11111111")
    assert pick_run(tmp_path, "sft-11111111") == run


def test_a_name_that_several_runs_have_is_refused(tmp_path: Path) -> None:
    for digit in "12":
        begin(tmp_path, "sft", digit=digit)
    with pytest.raises(RunError) as error:
        pick_run(tmp_path, "sft")
    assert str(error.value) == "sft: this recipe has 2 runs; name one of sft-11111111, sft-22222222"
    assert pick_run(tmp_path, "sft-22222222").hash == "2" * 64


def test_a_name_that_no_run_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        pick_run(tmp_path / "runs", "run:sft")
    assert str(error.value) == f"sft: no such run in {tmp_path / 'runs'}; there is none"
    begin(tmp_path, "sft")
    begin(tmp_path, "dpo")
    for name in ("sft-1", "sf", "", "sft-22222222"):
        with pytest.raises(RunError) as error:
            pick_run(tmp_path, name)
        assert str(error.value) == f"{name}: no such run in {tmp_path}; there are dpo-11111111, sft-11111111"


def test_runs_are_listed_in_a_line_each(tmp_path: Path) -> None:
    finish(begin(tmp_path, "a/sft", loss="sft"))
    interrupted = begin(tmp_path, "b", parent="a/sft-11111111")
    interrupted.note("interrupted", "", step=2)
    begin(tmp_path, "c", loss="simpo").note("stopped", "It fell.", step=2)
    begin(tmp_path, "d", loss="dpo").note("failed", "The disk is full.")
    fresh = begin(tmp_path, "e")
    fresh.set_metrics([])
    (tmp_path / "no run").mkdir()
    with acquire(fresh.lease, what="", wait=False, say=print):
        header, *lines = rendered(runs_table(tmp_path, []))
    columns = ["run", "state", "objective", "step", "loss", "rewards/accuracies", "mean_logps/chosen", "entropy/chosen"]
    assert header.split() == [*columns, "parent"]
    numbers = ["2", "0.625", "1.000", "-1.500"]
    assert [line.split() for line in lines] == [
        ["a/sft-11111111", "finished", "sft", *numbers],
        ["b-11111111", "interrupted", "slime", *numbers, "a/sft-11111111"],
        ["c-11111111", "stopped", "simpo", *numbers],
        ["d-11111111", "failed", "dpo", *numbers],
        ["e-11111111", "running", "slime", "0"],
    ]
    # Each number ends below its column's name.
    for name, number in zip(columns[3:7], numbers, strict=True):
        end = header.index(f" {name} ") + 1 + len(name)
        assert lines[0][:end].endswith(f" {number}")


@pytest.mark.parametrize("name", ["[v2] sft", "a[/b]"])
def test_names_with_brackets_are_listed(name: str, tmp_path: Path) -> None:
    begin(tmp_path, name)
    assert rendered(runs_table(tmp_path, []))[1].startswith(f"{name}-11111111  ")


def test_where_there_are_no_runs_the_table_is_empty(tmp_path: Path) -> None:
    assert runs_table(tmp_path / "absent", []).row_count == 0


def test_a_finished_run_is_shown(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft", parent="base-33333333")
    finish(run, "base-33333333")
    lines = rendered(run_report(run))
    manifest = run.manifest()
    assert manifest is not None
    assert facts_of(run, lines) == {
        "run": "sft-11111111",
        "state": "finished",
        "objective": "slime",
        "parent": "base-33333333",
        "starting model": "some/model",
        "data": "a.jsonl, b.jsonl",
        "data hash": "d" * 16,
        "model hash": "e" * 16,
        "versions": "torch 2.13.0, ray not installed",
        "finished": manifest.finished,
        "workers lost": "1 times",
        "model": str(run.final),
        "disk": size_text(used_bytes(run.folder)),
    }
    assert [event.split("  ", 1)[1] for event in lines[-2:]] == ["worker lost: worker 1 died", "finished"]


def test_an_interrupted_run_is_shown_with_its_checkpoints(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft")
    save(run, 1, {"eval_loss": 0.75})
    save(run, 2, {"eval_loss": 0.625})
    save(run, 3, {}, size=2_000_000)
    write_bytes(folder_of(run.checkpoints, 4) / "half", b"")
    run.note("warning", "[bold]worker 0[/bold] is slow", step=2)
    run.note("interrupted", "", step=3)
    lines = rendered(run_report(run))
    facts = facts_of(run, lines)
    assert facts["state"] == "interrupted"
    assert facts["parent"] == "none"
    assert not {"held by", "finished", "model", "workers lost"} & facts.keys()
    first, last = (n for n, line in enumerate(lines) if line.startswith(("checkpoint ", "step-00000003")))
    assert [line.split() for line in lines[first : last + 1]] == [
        ["checkpoint", "size", "eval_loss"],
        ["step-00000001", "1.5", "kB", "0.75"],
        ["step-00000002", "1.5", "kB", "0.625", "best"],
        ["step-00000003", "2", "MB"],
    ]
    *_, warned, interrupted = run.events()
    assert lines[last + 1] == ""
    assert lines[-2:] == [
        f"{warned.time}  warning at step 2: [bold]worker 0[/bold] is slow",
        f"{interrupted.time}  interrupted at step 3",
    ]


def test_a_stopped_run_is_shown_with_the_reason(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft")
    run.note("stopped", "eval_loss rose.", step=2)
    lines = rendered(run_report(run))
    assert facts_of(run, lines)["state"] == "stopped"
    assert lines[-1].endswith("  stopped at step 2: eval_loss rose.")
    assert not any(line.startswith("checkpoint") for line in lines)


def test_a_runs_first_and_last_metrics_are_shown(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft")
    lines = rendered(run_report(run))
    start = next(n for n, line in enumerate(lines) if line.startswith("metric "))
    assert [line.split() for line in lines[start : lines.index("", start)]] == [
        ["metric", "first", "last"],
        ["eval_loss", "0.75", "0.625"],
        ["eval_mean_logps/chosen", "-2", "-1.5"],
        ["eval_rewards/accuracies", "0.25", "1"],
        ["grad_norm", "1.235e+04", "1.235e+04"],
        ["loss", "0.7", "0.5"],
    ]


def test_who_holds_a_run_is_shown(tmp_path: Path) -> None:
    run = begin(tmp_path, "sft")
    with acquire(run.lease, what="", wait=False, say=print):
        facts = facts_of(run, rendered(run_report(run)))
    assert (facts["state"], facts["held by"]) == ("running", f"process {os.getpid()} on {socket.gethostname()}")
