"""A small pipeline in a folder: real recipes, data, model and training; a server of `tests.openai_server` answers."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_ray.config.serving import ServingRecipe
from slime_ray.pipeline import endpoint as places
from slime_ray.pipeline.stages import Outcome, run
from slime_ray.serving.served import Served
from slime_ray.serving.sources import resolve
from tests.conftest import SETTINGS, preference_rows, sft_rows, write_rows
from tests.evaluations import question_rows
from tests.openai_server import OpenAIServer

URL = "http://127.0.0.1:1/v1"  # where nothing answers
TRAINING = {
    **{key: value for key, value in SETTINGS.items() if key != "model.dtype"},
    "training.max_steps": 2,
    "data.eval": ["data/held_out.jsonl"],
}
FILES: dict[str, dict[str, Any]] = {
    "pipeline": {
        "train": ["sft.toml", "slime.toml"],
        "serve": "serve.toml",
        "evaluate": "evaluate.toml",
        "certify_pairs": 0,
    },
    "sft": {**TRAINING, "model.name": "tiny", "data.train": ["data/sft.jsonl"], "loss.kind": "sft"},
    "slime": {**TRAINING, "model.name": "run:sft", "data.train": ["data/preference.jsonl"]},
    "serve": {
        "port": 0,
        "models.base.source": "tiny",
        "models.sft.source": "run:sft",
        "models.slime.source": "run:slime",
    },
    "evaluate": {
        "questions.path": "data/questions.jsonl",
        "requests.attempts": 1,
        **{f"models.{name}.base_url": URL for name in ("base", "sft", "slime")},
        "judge.baseline": "sft",
    },
}


def change(file: str, **settings: Any) -> None:
    """Write a recipe of the project anew, with other settings; __ stands for a dot, None leaves a key out."""
    values = FILES[file] | {key.replace("__", "."): value for key, value in settings.items()}
    path = Path("recipes", f"{file}.toml")
    path.parent.mkdir(exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None]
    path.write_text("".join(lines), encoding="utf-8")


def write_project(model: Path) -> None:
    """The recipes in recipes/, which name all else from the working directory, and all else."""
    shutil.copytree(model, "tiny")
    write_rows(Path("data/sft.jsonl"), sft_rows(16, seed=0))
    write_rows(Path("data/preference.jsonl"), preference_rows(16, seed=0))
    write_rows(Path("data/held_out.jsonl"), preference_rows(4, seed=1))
    write_rows(Path("data/questions.jsonl"), question_rows(3))
    for file in FILES:
        change(file)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline that has not begun; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIME_RAY_API_KEYS", raising=False)
    write_project(tiny_model)
    return tmp_path


@dataclass
class Lines:
    """Runs a pipeline and keeps what it says."""

    said: list[str] = field(default_factory=list)

    def run(self, *overrides: str) -> Outcome:
        self.said.clear()
        return run(Path("recipes/pipeline.toml"), overrides, say=self.said.append)

    @property
    def stages(self) -> list[str]:
        """The stages that said something, each once, in order."""
        return [each for each in dict.fromkeys(line.partition(":")[0] for line in self.said) if each != "warning"]


@pytest.fixture
def lines() -> Lines:
    return Lines()


class Endpoints:
    """Stands where endpoints are brought up: finds the checkpoints as they do, and lists them with their lineage."""

    def __init__(self) -> None:
        self.up: list[tuple[str, ...]] = []
        self.open = 0
        self.asked: list[str] = []
        """The model of every request that was answered."""
        self.room = 100
        """Engines that fit at once."""
        self.heeded = False
        """Whether SIGTERM was still heeded when the last one was taken down."""
        self.server: Callable[[dict[str, str | None]], OpenAIServer] = OpenAIServer

    @contextmanager
    def endpoint(self, recipe: ServingRecipe, *, say: Callable[[str], None]) -> Iterator[SimpleNamespace]:
        cards: dict[str, str | None] = {}
        for each in resolve(recipe, say=say):
            cards |= {
                card.name: card.lineage["run"] for card in (each.card, *(beside.card for beside in each.adapters))
            }
        self.up.append(tuple(cards))
        self.open += 1
        server = self.server(cards)
        try:
            with server:
                yield SimpleNamespace(base_url=server.url)
        finally:
            self.open -= 1
            self.heeded = callable(signal.getsignal(signal.SIGTERM))
            self.asked += [served.body["model"] for served in server.served]

    def fits(self, models: list[Served]) -> str | None:
        return None if len(models) <= self.room else f"there is room for {self.room}"


def brought_up_by(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "slime_ray.serving.endpoint", SimpleNamespace(endpoint=endpoints.endpoint))
    monkeypatch.setitem(sys.modules, "slime_ray.serving.engine", SimpleNamespace(fits=endpoints.fits))
    monkeypatch.setattr(places, "cluster", nullcontext)
    monkeypatch.setattr(places, "_FREED_S", 0.0)


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    found = Endpoints()
    brought_up_by(found, monkeypatch)
    return found


@dataclass(frozen=True)
class Finished:
    """A pipeline that has run to its end, and how it went."""

    folder: Path
    outcome: Outcome
    lines: Lines
    endpoints: Endpoints


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Finished:
    folder = tmp_path_factory.mktemp("pipeline") / "finished"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        write_project(tiny_model)
        lines, endpoints = Lines(), Endpoints()
        brought_up_by(endpoints, monkeypatch)
        return Finished(folder, lines.run(), lines, endpoints)


@pytest.fixture
def done(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What it ended with; a copy of its folder is the working directory."""
    monkeypatch.delenv("SLIME_RAY_API_KEYS", raising=False)
    shutil.copytree(finished.folder, tmp_path / "finished")
    monkeypatch.chdir(tmp_path / "finished")
    page = finished.outcome.page.relative_to(finished.folder)
    return replace(finished.outcome, page=tmp_path / "finished" / page)
