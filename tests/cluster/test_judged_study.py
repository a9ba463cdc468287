"""A study whose best trials are served by vLLM and judged by rules."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from slime_ray.search.trials import read_trials
from slime_ray.search.weights import first
from tests.command_line import Run
from tests.conftest import preference_rows, write_rows
from tests.studies import SPACE, WriteStudy, write_study

__all__ = ["write_study"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TABLES = SPACE + '\n[judge]\nserve = "serve.toml"\nevaluate = "evaluate.toml"\ntop = 1\n[noise]\nseeds = 2\n'
# Two engines on two cores, of which each needs heads of 32 at least.
SERVE = """
port = 0
[models.any]
source = "unused"
cpus = 0.5
kv_cache_gb = 0.2
max_model_len = 256
"""


def write_judging(folder: Path) -> None:
    """The judge likes long answers, which accuracy knows nothing of."""
    questions = [
        {"question_id": n, "category": "length", "turns": [f"Tell much of {n}."],
         "checks": [{"kind": "count", "of": "words", "min": 8, "max": 20}], "required_temperature": 0.0}
        for n in range(1, 9)
    ]  # fmt: skip
    (folder / "serve.toml").write_text(SERVE)
    (folder / "evaluate.toml").write_text(
        f"evaluations_dir = {json.dumps(str(folder / 'evaluations'))}\n"
        f"questions.path = {json.dumps(str(write_rows(folder / 'questions.jsonl', questions)))}\n"
        '[models.any]\nbase_url = "http://127.0.0.1:8000/v1"\nmax_tokens = 12\n'
    )


def write_model(folder: Path) -> Path:
    from slime_ray.quickstart.models import make_llama, make_tokenizer

    tokenizer = make_tokenizer([row["prompt"] for row in preference_rows(50, seed=0)], vocabulary=300)
    tokenizer.save_pretrained(folder)
    make_llama(tokenizer, layers=2, hidden=64, heads=2, tied=False, seed=0).save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*.jsonl")}


@pytest.mark.usefixtures("ray_cluster")
def test_the_best_by_the_judge_is_the_best(
    write_study: WriteStudy, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_judging(tmp_path)
    settings: dict[str, Any] = {"model.name": str(write_model(tmp_path / "model"))}
    study = write_study("trials = 3", "concurrent = 2", tables=TABLES, settings=settings)
    answer = run("tune", study)
    assert answer.code == 0, answer.err
    folder = tmp_path / "studies" / "study"
    trials = read_trials(folder)
    searched = trials[:3]

    # Judged are the recipe's own and the first by accuracy, each once, and nobody else.
    (foremost,) = first(searched, ["accuracy"], count=1)
    candidates = {0, foremost.number}
    assert len(candidates) == 2
    rows = {int(row["number"]): row["judged"] for row in csv.DictReader((folder / "trials.csv").open())}
    scores = {number: float(score) for number, score in rows.items() if score}
    assert scores.keys() == candidates
    told = [line for line in answer.err.splitlines() if " judged: " in line]
    assert {int(line.split()[1]) for line in told} == candidates

    # The recipe's own answers are the longer ones.
    assert scores[0] > scores[foremost.number]
    text = (folder / "best.toml").read_text()
    assert f"trial 0, judged {scores[0]:.4g} (mean grade, 1 to 10), accuracy" in text.splitlines()[0]
    assert "loss" not in tomllib.loads(text)
    assert "Trial 0 has the highest score of 2 judged" in (folder / "report.html").read_text()
    assert [trial.label for trial in trials[3:]] == ["trial 0, seed 1"]

    # The same command asks nobody again.
    before = contents(folder) | contents(tmp_path / "evaluations")
    again = run("tune", study)
    assert again.code == 0, again.err
    assert "judge, report: left out" in again.err
    assert contents(folder) | contents(tmp_path / "evaluations") == before
