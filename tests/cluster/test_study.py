"""A study of real trainings on a real cluster, trial beside trial, from its first trial to its result."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from slime_ray.overrides import load_recipe
from slime_ray.runs import all_runs
from slime_ray.search.bench import read_score
from slime_ray.search.heldout import read_heldout
from slime_ray.search.objectives import figure
from slime_ray.search.trials import ledger_file, read_trials
from slime_ray.search.weights import best_of, may_win
from slime_ray.training.fit import train
from slime_ray.training.scoring import score
from tests.command_line import Run
from tests.studies import SPACE, WriteStudy, write_study

__all__ = ["write_study"]

pytestmark = pytest.mark.timeout(300)

OBJECTIVES = ("accuracy", "chosen_logp")
TABLES = SPACE + "\n[stopping]\nfirst = 1\nfactor = 2\n[noise]\nseeds = 2\n"


@pytest.mark.usefixtures("ray_cluster")
def test_twelve_trials_two_at_a_time(write_study: WriteStudy, run: Run, tmp_path: Path) -> None:
    # Each row a micro-batch, so that a trial is not over before it could be stopped.
    slowly = {"training.max_steps": 12, "training.tokens_per_micro_batch": 1}
    lines = ("trials = 12", "concurrent = 2", f"objectives = {json.dumps(OBJECTIVES)}")
    study = write_study(*lines, tables=TABLES, settings=slowly)
    answer = run("tune", study)
    assert answer.code == 0, answer.err
    folder = tmp_path / "studies" / "study"
    trials = read_trials(folder)
    searched, seeds = trials[:12], trials[12:]
    assert [trial.origin for trial in searched] == ["recipe", "authors", *["proposed"] * 10]
    assert {trial.state for trial in trials} == {"finished", "stopped"}
    assert [trial.attempts for trial in trials] == [1] * len(trials)
    # Two at a time: of the ledger's lines, no more than two trials had begun and not ended.
    running: set[int] = set()
    most = 0
    for line in map(json.loads, ledger_file(folder).read_text().splitlines()):
        running = running | {line["number"]} if line["state"] == "running" else running - {line["number"]}
        most = max(most, len(running))
    assert most == 2
    # Every trial says in the log what became of it.
    told = Counter(line.split()[1] for line in answer.err.splitlines() if line.startswith("trial "))
    assert told == {str(trial.number): 1 for trial in trials}

    # Seeds of the recipe's own settings and of the best, which are the same ones if these are the best.
    best = best_of(searched, OBJECTIVES)
    assert best is not None
    repeated = [searched[number] for number in dict.fromkeys([0, best.number])]
    assert [trial.settings for trial in seeds] == [{**trial.settings, "training.seed": 1} for trial in repeated]

    # Weights are there for those that may still win, and for nobody else; metrics are there for all.
    kept = {trial.run for trial in may_win(trials, OBJECTIVES, top=1)}
    runs = all_runs(tmp_path / "runs", [])
    assert {each.name for each in runs} == {trial.run for trial in trials}
    for each in runs:
        assert each.final.exists() == (each.name in kept)
        assert each.state() == ("finished" if each.name in kept else "discarded")
        assert not list(each.checkpoints.glob("*"))
        assert each.metrics()
    assert not list(folder.glob(".tune-*"))

    # The same command has nothing left to do.
    before = ledger_file(folder).read_bytes()
    again = run("tune", study)
    assert again.code == 0, again.err
    assert ledger_file(folder).read_bytes() == before

    # best.toml is found where it was trained, and trains anew to the same figure.
    assert str(folder / "best.toml") in answer.out
    recipe = load_recipe(folder / "best.toml")
    assert train(recipe).name == best.run
    elsewhere = recipe.model_copy(update={"runs_dir": str(tmp_path / "elsewhere")})
    trained = train(elsewhere)
    parts = read_heldout(folder)
    assert parts is not None
    options = {"max_length": recipe.data.max_length, "max_new_tokens": 0}
    found = score(f"run:{trained.name}", parts.entry, runs_dir=tmp_path / "elsewhere", **options)
    start, _ = parts.parts(read_score(folder, "start"))
    for name, value in best.values.items():
        assert figure(name, parts.parts(found)[0], start) == pytest.approx(value, abs=1e-6)  # pyright: ignore[reportArgumentType]
    # Which says something: the next trial's figure differs by more.
    others = [trial.values["chosen_logp"] for trial in searched if trial.state == "finished" and trial is not best]
    assert min(abs(other - best.values["chosen_logp"]) for other in others) > 1e-4
    assert tomllib.loads((folder / "best.toml").read_text())["name"] == "study/trial"
