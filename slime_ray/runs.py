"""The run folder: a name made from content, config.json, metrics.jsonl, final/ and a manifest written last."""

from __future__ import annotations

import glob
import json
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slime_ray.config.recipe import SETTINGS_VERSION, Recipe
from slime_ray.errors import RunError
from slime_ray.storage import folder_files, json_hash, write_json

# The packages whose version may change a result.
_PACKAGES = ("slime-ray", "torch", "transformers", "tokenizers", "peft", "ray", "numpy")
# As a glob pattern: what a run's name ends with.
_HASH_DIGITS = "[0-9a-f]" * 8


class Manifest(BaseModel):
    """What a finished run was made from and what it made.

    Attributes:
        name: the run's name, the folder below the runs folder.
        recipe: the recipe's name.
        hash: what the name's last 8 digits begin: settings that change the result, data and parent.
        data, model: hashes of the data's and the starting model's content.
        parent: the name of the run whose model this one started from.
        versions: of the packages that trained it.
        metrics: the last value of every metric.
        files: size and hash of every file of final/.
        finished: when, UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recipe: str
    hash: str
    data: str
    model: str
    parent: str | None
    versions: dict[str, str]
    metrics: dict[str, float]
    files: dict[str, dict[str, Any]]
    finished: str


@dataclass(frozen=True)
class Run:
    """One run's folder and what its name stands for."""

    runs_dir: Path
    recipe: str
    hash: str

    @property
    def name(self) -> str:
        """The recipe's name and 8 hex digits."""
        return f"{self.recipe}-{self.hash[:8]}"

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.runs_dir / self.name

    @property
    def final(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.folder / "final"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.folder / "metrics.jsonl"

    def manifest(self) -> Manifest | None:
        """The manifest of a finished run, None for one that is not finished."""
        return read_manifest(self.folder)

    def make_runs_dir(self) -> None:
        """Make the folder that keeps all runs.

        Raises:
            RunError: it cannot be made or written.
        """
        try:
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            problem = None if os.access(self.runs_dir, os.W_OK) else "not writable"
        except OSError as error:
            problem = error.strerror
        if problem:
            raise RunError(f"runs_dir = {str(self.runs_dir)!r}: {problem}; expected a writable folder")

    def begin(self, recipe: Recipe) -> None:
        """Make the folder anew with config.json; what an unfinished run left is removed."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.make_runs_dir()
        self.folder.mkdir(parents=True)
        write_json(self.folder / "config.json", recipe.model_dump(mode="json"))

    def withdraw(self) -> None:
        """Remove the folder of a run that was stopped before it had anything to log."""
        if not self.metrics_file.exists():
            shutil.rmtree(self.folder)

    def log(self, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def metrics(self) -> list[dict[str, float]]:
        """All whole lines of metrics.jsonl, in order; a line that is being written is left for later."""
        if not self.metrics_file.exists():
            return []
        text = self.metrics_file.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]

    def finish(self, *, data: str, model: str, parent: str | None) -> Manifest:
        """Write the manifest: from now on the run is finished."""
        last: dict[str, float] = {}
        for line in self.metrics():
            last.update(line)
        manifest = Manifest(
            name=self.name,
            recipe=self.recipe,
            hash=self.hash,
            data=data,
            model=model,
            parent=parent,
            versions={name: metadata.version(name) for name in _PACKAGES},
            metrics=last,
            files=folder_files(self.final),
            finished=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
        write_json(self.folder / "manifest.json", manifest.model_dump(mode="json"))
        return manifest


def run_of(recipe: Recipe, *, data: str, model: str) -> Run:
    """The run that a recipe stands for, given the hashes of its data and of the model that it starts from."""
    settings = recipe.result_settings()
    identity = {"version": SETTINGS_VERSION, "settings": settings, "data": data, "model": model}
    return Run(Path(recipe.runs_dir).absolute(), recipe.name, json_hash(identity))


def find_run(runs_dir: Path, name: str) -> Manifest:
    """The newest finished run of the recipe `name`, or the finished run called `name`.

    Raises:
        RunError: there is none; the message says what is there.
    """
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise RunError(f"run:{name}: no name of a recipe or run; expected one such as run:quickstart/sft")
    folders = [runs_dir / name, *runs_dir.glob(f"{glob.escape(name)}-{_HASH_DIGITS}")]
    found = [manifest for folder in folders if (manifest := read_manifest(folder)) is not None]
    if found:
        return max(found, key=lambda manifest: manifest.finished)
    unfinished = [folder.name for folder in folders if (folder / "config.json").is_file()]
    state = f"{', '.join(unfinished)} is not finished; train it to its end" if unfinished else "train that recipe first"
    raise RunError(f"run:{name}: no finished run of this name in {runs_dir}; {state}")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a run's folder, None if there is none.

    Raises:
        RunError: the file is no manifest.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]
        raise RunError(f"{path}: {'.'.join(map(str, reason['loc'])) or 'the file'}: {reason['msg']}") from None
