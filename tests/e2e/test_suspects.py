"""Pairs that were swapped on purpose are found among the training data after a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from slime_ray.overrides import load_recipe
from slime_ray.training.fit import train
from tests.conftest import WORDS, write_rows

PAIRS, SWAPPED = 200, 10
# A rate and a number of steps at which a tiny random model learns "yes before no"; the paper's weight of the stabilizer
# is too much for random weights.
SETTINGS = {
    "model.dtype": "float32",
    "loss.lambda_rejected": 0.0005,
    "training.learning_rate": 3e-3,
    "training.pairs_per_step": 16,
    "training.max_steps": 20,
}


def test_swapped_pairs_are_listed_first_of_all(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    random = Random(0)
    rows = [
        {
            "prompt": f"{number}: {' '.join(random.choices(WORDS, k=3))}",
            "chosen": f"yes {random.choice(WORDS)}",
            "rejected": f"no {random.choice(WORDS)}",
        }
        for number in range(PAIRS)
    ]
    swapped = random.sample(range(PAIRS), SWAPPED)
    for row in swapped:
        rows[row]["chosen"], rows[row]["rejected"] = rows[row]["rejected"], rows[row]["chosen"]
    pairs = write_rows(tmp_path / "swapped.jsonl", rows)

    run = train(load_recipe(write_recipe(SETTINGS | {"data.train": [str(pairs)]})))

    listed = [json.loads(line) for line in (run.folder / "suspects.jsonl").read_text(encoding="utf-8").splitlines()]
    sources = {f"{pairs}:{row + 1}" for row in swapped}
    found = [row for row in listed if row["source"] in sources]
    print(f"of {len(listed)} listed pairs {len(found) / len(listed):.0%} were swapped, of all {SWAPPED / PAIRS:.0%}")
    assert len(found) >= 8
    assert len(found) / len(listed) >= 5 * SWAPPED / PAIRS
    assert all(row["chosen"].startswith("no ") and row["rejected"].startswith("yes ") for row in found)
    assert [row["margin"] for row in listed] == sorted(row["margin"] for row in listed)
    assert listed[0]["source"] in sources
