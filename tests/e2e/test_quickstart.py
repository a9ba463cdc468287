"""`make quickstart` as the README gives it, in an empty folder: interrupted, to its end, and once more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)
NEEDED = ("Makefile", "pyproject.toml", "requirements", "jobs")
QUICKSTART = ["make", "--no-print-directory", "quickstart", f"VENV={ENVIRONMENT}"]


def make_quickstart(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(QUICKSTART, cwd=folder, capture_output=True, text=True, timeout=1500, check=False)


def interrupt_while_engines_start(folder: Path) -> list[str]:
    """What the command said; Ctrl-C reaches all that a terminal has in the foreground."""
    log = folder / "interrupted.log"
    with log.open("w") as err:
        command = subprocess.Popen(
            QUICKSTART, cwd=folder, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True
        )
    family = psutil.Process(command.pid)
    while command.poll() is None and not any(title.startswith("VLLM") for title in titles(family)):
        time.sleep(0.5)
    started = family.children(recursive=True)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(120) != 0
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [process.name() for process in alive] == []
    return log.read_text().splitlines()


def titles(family: psutil.Process) -> list[str]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in family.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quickstart_trains_judges_and_finds_its_stages_again(tmp_path: Path) -> None:
    if not (ENVIRONMENT / ".complete").exists():
        pytest.skip("runs in the environment that `make setup` makes")
    for name in NEEDED:
        # copy2 keeps the times, by which make knows that the environment is up to date.
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy2(source, tmp_path / name)

    said = interrupt_while_engines_start(tmp_path)
    assert "interrupted; what was finished is kept, the same command goes on" in said, said
    runs = tmp_path / "runs" / "quickstart"
    folders = {name: next(runs.glob(f"{name}-????????")) for name in ("sft", "sft-continued", "slime")}
    written = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders.values()}

    first = make_quickstart(tmp_path)
    assert first.returncode == 0, first.stderr
    for folder in folders.values():
        assert (folder / "metrics.png").stat().st_size > 10_000
        assert f"train: {folder} is there" in said
        assert json.loads((folder / "certificate.json").read_text())["passed"]
    report = json.loads((tmp_path / "evaluations" / "quickstart" / "evaluate" / "report.json").read_text())
    # 200 questions, of which 24 have two turns.
    judged = {model["name"]: model["overall"]["judged"] for model in report["models"]}
    assert judged == dict.fromkeys(("base", "sft", "sft-continued", "slime"), 224)
    assert all(not model["failed"] for model in report["models"])
    best = report["models"][0]["name"]
    *table, page, serve = first.stdout.splitlines()
    for name in judged:
        assert any(line.split()[:1] == [name] for line in table)
    assert page == str(tmp_path / "evaluations" / "quickstart" / "evaluate" / "report.html")
    assert serve == f"slime-ray serve run:quickstart/{folders[best].name}"

    # What the README says of the demonstration: SLIME ranks more pairs right than its start, keeps the chosen
    # likelihood, and answers more prompts right.
    score(tmp_path)
    scores = [json.loads(path.read_text()) for path in (tmp_path / "runs" / ".cache" / "scores").iterdir()]
    by_model = {score["model"]: score for score in scores}
    sft, slime = by_model["run:quickstart/sft"], by_model["run:quickstart/slime"]
    assert accuracy(slime) > accuracy(sft)
    assert mean(slime["chosen"]) >= mean(sft["chosen"])
    assert passed(slime) > passed(sft)

    # The guard says nothing about the three, and stops one whose learning rate is 100 times too high.
    for folder in folders.values():
        assert [
            event for event in events(folder) if event["kind"] == "warning" and "suspects" not in event["message"]
        ] == []
    recipe = ["jobs/recipes/quickstart/slime.toml", "training.learning_rate=5e-2", "guard.action=stop"]
    command = [ENVIRONMENT / "bin" / "slime-ray", "train", *recipe, "name=too-fast", "training.num_workers=0"]
    too_fast = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert too_fast.returncode == 3
    run = next(runs.parent.glob("too-fast-????????"))
    assert too_fast.stderr.splitlines()[-1].startswith(f"error: {run.name} was stopped by the guard after step 25: ")
    assert (run / "checkpoints" / "step-00000000" / "manifest.json").is_file(), "no later one was better"
    assert (run / "best" / "model.safetensors").is_file()
    assert not (run / "manifest.json").exists()

    again = make_quickstart(tmp_path)
    assert again.returncode == 0, again.stderr
    assert {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in folders.values()} == written
    assert " steps" not in again.stderr, "a finished stage was trained again"
    assert "starting " not in again.stderr, "a finished evaluation was served again"
    assert again.stdout.splitlines()[-2:] == [page, serve]


def score(folder: Path) -> None:
    """The README's table of likelihoods."""
    models = ["runs/quickstart/base", *(f"run:quickstart/{name}" for name in ("sft", "sft-continued", "slime"))]
    options = ["--data", "runs/quickstart/data/test.jsonl", "--max-length", "256", "--max-new-tokens", "64"]
    subprocess.run([ENVIRONMENT / "bin" / "slime-ray", "score", *models, *options], cwd=folder, timeout=600, check=True)


def events(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def accuracy(score: dict[str, list[float]]) -> float:
    pairs = list(zip(score["chosen"], score["rejected"], strict=True))
    return sum(chosen > rejected for chosen, rejected in pairs) / len(pairs)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def passed(score: dict[str, list[dict[str, bool]]]) -> int:
    return sum(answer["greedy_passed"] for answer in score["answers"])
