"""What a study costs beside its trainings: n trials one after another against n plain runs with the same settings.

    python -m tests.benchmarks.study_overhead [--trials 6] [--rounds 3]

A plain run is a training and its score on the study's held-out pairs, which a trial has too; all of them are done in
one process, so that model, data and torch are loaded once there as well. The third side is what people do by hand: a
command for each training and each score. All sides have one thread, and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slime_ray.search.trials import read_trials
from tests.command_line import COMMAND

RECIPE = """
model.name = "base"
data.train = ["data/preference.jsonl"]
data.max_length = 256
[loss]
kind = "slime"
lambda_rejected = 0.0005
[training]
learning_rate = 5e-4
max_steps = 60
pairs_per_step = 32
num_workers = 0
"""
STUDY = """
recipe = "recipe.toml"
heldout = "data/test.jsonl"
objectives = ["accuracy", "chosen_logp"]
concurrent = 1
[space.loss]
hard_margin = {low = 0.5, high = 3.0}
kappa = {low = 0.5, high = 10.0, log = true}
"""
PLAIN = """
import json, sys
from pathlib import Path
from slime_ray.overrides import load_recipe
from slime_ray.training.fit import train
from slime_ray.training.scoring import score
for settings in json.load(sys.stdin):
    recipe = load_recipe(Path("recipe.toml"), settings)
    name, runs_dir = f"run:{train(recipe).name}", Path(recipe.runs_dir)
    score(name, "data/test.jsonl", runs_dir=runs_dir, max_length=256, max_new_tokens=0)
"""


def main() -> None:
    """Print seconds of all sides and their ratios as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("recipe.toml").write_text(RECIPE)
        Path("study.toml").write_text(f"trials = {options.trials}\n{STUDY}")
        slime_ray("quickstart", "data", "data")
        slime_ray("quickstart", "model", "base", "--data", "data/sft.jsonl")
        rounds = [measure(number) for number in range(options.rounds)]
    show(rounds, options.trials)


def measure(number: int) -> dict[str, float]:
    """Seconds of each side, in a round with folders of its own."""
    studies, runs = f"studies-{number}", f"runs-{number}"
    found = {
        "study": timed(lambda: slime_ray("tune", "study.toml", f"studies_dir={studies}", f"recipe.runs_dir={runs}"))
    }
    trials = read_trials(Path(studies) / "study")
    assert {trial.state for trial in trials} == {"finished"}
    found["in its trials"] = sum(trial.seconds for trial in trials)
    settings = [[f"{key}={json.dumps(value)}" for key, value in trial.settings.items()] for trial in trials]
    shared = [[f"runs_dir=shared-{number}", f"name=shared-{place}", *each] for place, each in enumerate(settings)]
    found["one process"] = timed(lambda: call([sys.executable, "-c", PLAIN], given=json.dumps(shared)))
    found["commands"] = timed(lambda: by_hand(f"apart-{number}", settings))
    print(f"round {number}: {found}", file=sys.stderr)
    return found


def by_hand(runs: str, settings: Sequence[Sequence[str]]) -> None:
    """Train and score with a command for each."""
    for place, each in enumerate(settings):
        slime_ray("train", "recipe.toml", f"runs_dir={runs}", f"name=apart-{place}", *each)
        score = ("score", f"run:apart-{place}", "--data", "data/test.jsonl", "--max-length", "256")
        slime_ray(*score, "--runs-dir", runs)


def slime_ray(*arguments: str) -> None:
    """Run the command line."""
    call([sys.executable, "-c", COMMAND, *arguments])


def call(command: Sequence[str], *, given: str = "") -> None:
    """Run a command with one thread, on a cluster of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def timed(work: Callable[[], Any]) -> float:
    """Seconds of wall clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(rounds: Sequence[dict[str, float]], trials: int) -> None:
    """The table: medians, and the ratio in each round."""
    print(f"| {trials} trials, one after another; {len(rounds)} rounds | seconds, median | study / this, each round |")
    print("|---|---:|---:|")
    for side in rounds[0]:
        ratios = ", ".join(f"{each['study'] / each[side]:.2f}" for each in rounds)
        print(f"| {side} | {statistics.median(each[side] for each in rounds):.0f} | {ratios} |")


if __name__ == "__main__":
    main()
