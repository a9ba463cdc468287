"""What tests share: a tiny model with its tokenizer, small data files, recipes, and a Ray cluster on this machine."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from slime_ray import cli
from tests.command_line import Answer, Run

WORDS = ["red", "blue", "small", "river", "stone", "walks", "reads", "never", "always", "seven", "window", "letter"]
# What recipes of the tests have unless they say otherwise; the model and the data are added by `write_recipe`.
SETTINGS = {
    "model.dtype": "float64",
    "data.max_length": 96,
    "training.learning_rate": 1e-3,
    "training.pairs_per_step": 8,
    "training.max_steps": 3,
    "training.num_workers": 0,
    # Given, so that no test waits for them to be chosen.
    "training.tokens_per_micro_batch": 16384,
    "training.gradient_checkpointing": False,
}

Settings = dict[str, Any]
WriteRecipe = Callable[..., Path]


_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the outcome for `pytest_unconfigure`."""
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process that had Ray in it without tearing down its native libraries.

    Ray is started and stopped in it several times, with vLLM, OpenCV and Arrow loaded as well, and their teardown has
    been seen to end in a segmentation fault, once in a dozen, after all tests had passed and been reported.
    """
    if "ray" in sys.modules and _STATUS in config.stash:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(scope="session", autouse=True)
def _clusters_of_these_tests_alone() -> Iterator[None]:
    """Ray with a folder of its own: it joins, without being asked, what `ray start` noted in the one that all share."""
    os.environ.pop("RAY_ADDRESS", None)
    # Ray's sockets lie below its folder, and their paths have to be short.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preference_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Pairs of one to sixteen words an answer; every seventh has a prompt and an answer that must be cut."""
    random = Random(f"preference/{seed}")
    rows = []
    for number in range(count):
        long = number % 7 == 3
        prompt = f"{number}: {_text(random, 90 if long else random.randint(2, 10))}"
        chosen, rejected = (_text(random, random.randint(1, 16)) for _ in range(2))
        rows.append({"prompt": prompt, "chosen": f"yes {chosen}", "rejected": f"no {rejected}"})
    return rows


def sft_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Conversations of one or two turns."""
    random = Random(f"sft/{seed}")
    rows = []
    for number in range(count):
        turns = [("user", f"{number}: {_text(random, random.randint(2, 10))}")]
        if number % 3 == 0:
            turns += [("assistant", _text(random, 2)), ("user", _text(random, 3))]
        turns.append(("assistant", _text(random, random.randint(1, 20))))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def _text(random: Random, words: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: 300 tokens, an untied Llama of 2 layers x 32 with random float32 weights."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", seed=0)


def write_tiny_model(folder: Path, *, seed: int, vocabulary: int = 300) -> Path:
    """Write a tiny tokenizer and a Llama for it."""
    import torch

    from slime_ray.quickstart.models import make_llama, make_tokenizer

    tokenizer = make_tokenizer([row["prompt"] for row in preference_rows(50, seed=0)], vocabulary=vocabulary)
    model = make_llama(tokenizer, layers=2, hidden=32, heads=2, tied=False, seed=seed)
    with torch.no_grad():  # as they are drawn, all tokens are about as likely and gradients are tiny
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6.0)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preference_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 pairs, so that neither 8 nor 3 divides them."""
    return write_rows(tmp_path_factory.mktemp("data") / "preference.jsonl", preference_rows(41, seed=0))


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 pairs."""
    return write_rows(tmp_path_factory.mktemp("data") / "held_out.jsonl", preference_rows(7, seed=1))


@pytest.fixture(scope="session")
def sft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 conversations."""
    return write_rows(tmp_path_factory.mktemp("data") / "sft.jsonl", sft_rows(41, seed=0))


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model: Path, preference_file: Path) -> WriteRecipe:
    """A function that writes a recipe from dotted keys, over `SETTINGS`, and returns its path.

    Its model is the tiny one, its data the preference file, its runs folder `tmp_path / "runs"`. A setting of None
    leaves the key out.
    """
    return recipe_writer(tmp_path, model=tiny_model, data=preference_file)


def recipe_writer(folder: Path, *, model: Path, data: Path) -> WriteRecipe:
    """What the fixture `write_recipe` gives, for fixtures of a wider scope."""
    places = {"runs_dir": str(folder / "runs"), "model.name": str(model), "data.train": [str(data)]}

    def write(settings: Settings | None = None, *, file: str = "recipe.toml") -> Path:
        values = SETTINGS | places | (settings or {})
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None]
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of 4 CPUs in processes of this machine, which shows its gauges every second."""
    import ray

    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112, Ray's name
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in this process, for speed."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["slime-ray", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, printed.out, printed.err)

    return call
