"""The quickstart under several seeds: is SLIME better than its start, and than SFT that goes on for as many steps?

Each seed has data, questions, a model and training of its own, in a folder of its own; what is finished is kept.
The differences are of rubric scores (1 to 10) on the same questions; intervals of 95 % and p resample whole questions.
The pooled line is of the questions of all these runs: what other seeds would give, it says only as far as few runs can.

    python -m tests.benchmarks.quickstart_seeds [--seeds 0 1 2] [--folder build/quickstart_seeds]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slime_ray.evaluation.reporting import find
from slime_ray.evaluation.statistics.paired import PairedTest, paired_test

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "jobs" / "recipes" / "quickstart" / "pipeline.toml"
MODELS = ("base", "sft", "sft-continued", "slime")
BEFORE = {"sft": "SFT", "sft-continued": "SFT continued"}


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("build/quickstart_seeds"))
    asked = parser.parse_args()
    for seed in asked.seeds:
        begun = time.monotonic()
        run(asked.folder / f"seed-{seed}", seed)
        print(f"seed {seed}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    scores = {seed: read_scores(asked.folder / f"seed-{seed}") for seed in asked.seeds}
    print("\n".join([*score_lines(scores), "", *difference_lines(scores)]))


def run(folder: Path, seed: int) -> None:
    """What `make quickstart` does, with a seed."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    data, model = "runs/quickstart/data", "runs/quickstart/base"
    command = "from slime_ray.cli import main; main()"
    for arguments in (
        ["quickstart", "data", data, "--seed", str(seed)],
        ["quickstart", "model", model, "--data", f"{data}/sft.jsonl", "--seed", str(seed)],
        ["pipeline", str(RECIPE), f"train.training.seed={seed}"],
    ):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-c", command, *arguments], cwd=folder, env=env, stdout=sys.stderr, check=False
        )
        if ended.returncode != 0:
            sys.exit(ended.returncode)  # it has said why


def read_scores(folder: Path) -> dict[str, dict[tuple[str, int], float]]:
    """By model the score of each question's turn."""
    found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in MODELS}
    for grade in find([folder / "evaluations" / "quickstart" / "evaluate"]).judgments.grades:
        assert grade.score is not None, f"{folder}: question {grade.question} of {grade.model} has no score"
        found[grade.model][grade.question, grade.turn] = grade.score
    return found


def score_lines(scores: dict[int, dict[str, dict[tuple[str, int], float]]]) -> list[str]:
    """Mean scores, a line a seed."""
    lines = [f"| seed | {' | '.join(MODELS)} |", f"|---|{'---:|' * len(MODELS)}"]
    for seed, models in scores.items():
        means = (float(np.mean(list(models[name].values()))) for name in MODELS)
        lines.append(f"| {seed} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return lines


def difference_lines(scores: dict[int, dict[str, dict[tuple[str, int], float]]]) -> list[str]:
    """SLIME less what it is compared with, a line a seed and one of all."""
    lines = ["| seed | " + " | ".join(f"SLIME less {name}" for name in BEFORE.values()) + " |", "|---|---:|---:|"]
    for seeds in [*([seed] for seed in scores), list(scores)] if len(scores) > 1 else [list(scores)]:
        cells = [shown(compared([scores[seed] for seed in seeds], other)) for other in BEFORE]
        lines.append(f"| {seeds[0] if len(seeds) == 1 else 'all'} | {' | '.join(cells)} |")
    return lines


def compared(runs: Sequence[dict[str, dict[tuple[str, int], float]]], other: str) -> PairedTest:
    """SLIME less another model on every turn; the turns of one question of one run are one cluster."""
    differences: list[float] = []
    clusters: dict[tuple[int, str], int] = {}
    places: list[int] = []
    for number, models in enumerate(runs):
        assert models["slime"].keys() == models[other].keys()
        for (question, turn), score in models["slime"].items():
            differences.append(score - models[other][question, turn])
            places.append(clusters.setdefault((number, question), len(clusters)))
    return paired_test(np.array(differences), np.array(places))


def shown(test: PairedTest) -> str:
    """A difference with its interval, or that there is none to be seen."""
    assert test.low is not None
    assert test.high is not None
    assert test.p is not None
    interval = f"{test.difference:+.2f} ({test.low:+.2f} to {test.high:+.2f}, p = {test.p:.2g})"
    return f"no difference shown: {interval}" if test.low <= 0 <= test.high else interval


if __name__ == "__main__":
    main()
