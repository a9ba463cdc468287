"""The run folder: a name made from content, its lineage, what happened in it, and a manifest written last."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from slime_ray.config.recipe import SETTINGS_VERSION, Recipe
from slime_ray.errors import RunError
from slime_ray.lease import held_by
from slime_ray.manifest import Lineage, Manifest
from slime_ray.storage import (
    append_text,
    flush,
    folder_files,
    is_local,
    json_hash,
    place,
    remove,
    whole_lines,
    write_json,
    write_text,
)

# As a glob pattern: what a run's name ends with.
_HASH_DIGITS = "[0-9a-f]" * 8

EventKind = Literal[
    "started", "resumed", "warning", "worker lost", "interrupted", "stopped", "failed", "finished", "discarded"
]
State = Literal["running", "interrupted", "stopped", "failed", "finished", "discarded"]


class Event(BaseModel):
    """One line of events.jsonl: something that happened to a run; `time` is for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: EventKind
    message: str
    step: int | None = None
    time: str


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
    def best(self) -> Path:
        """The model of the best checkpoint, beside a run that the guard stopped."""
        return self.folder / "best"

    @property
    def checkpoints(self) -> Path:
        """What the run can be continued from."""
        return self.folder / "checkpoints"

    @property
    def lease(self) -> Path:
        """Who writes here."""
        return self.folder / "lease"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        """One `Event` a line."""
        return self.folder / "events.jsonl"

    def manifest(self) -> Manifest | None:
        """The manifest of a finished run, None for one that is not finished."""
        return Manifest.read(self.folder / "manifest.json")

    def lineage(self) -> Lineage | None:
        """What the run in the folder is made from, None where none has begun."""
        return Lineage.read(self.folder / "lineage.json")

    def state(self) -> State:
        """What became of the run, by what lies in its folder."""
        if self.manifest() is not None:
            return "finished"
        if held_by(self.lease) is not None:
            return "running"
        ending = self.ending()
        told = ending.kind if ending is not None else ""
        return told if told in ("stopped", "failed", "discarded") else "interrupted"

    def ending(self) -> Event | None:
        """How the last command that trained the run ended, None if that was not told: it was killed, or is at work."""
        for event in reversed(self.events()):
            if event.kind in ("stopped", "failed", "interrupted", "finished", "discarded"):
                return event
            if event.kind in ("started", "resumed"):
                break
        return None

    def make_runs_dir(self) -> None:
        """Make the folder that keeps all runs.

        Raises:
            RunError: it cannot be made or written.
        """
        try:
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            problem = "not writable" if is_local(self.runs_dir) and not os.access(self.runs_dir, os.W_OK) else None
        except OSError as error:
            problem = error.strerror
        if problem:
            raise RunError(f"runs_dir = {str(self.runs_dir)!r}: {problem}; expected a writable folder")

    def begin(self, recipe: Recipe, lineage: Lineage, *, keep: bool = False) -> None:
        """Make the folder, or take up the one that an earlier command left; the caller holds the lease.

        Args:
            recipe: its settings.
            lineage: what it is made from.
            keep: there are checkpoints of this run, so a folder that has lost its lineage is not emptied.

        Raises:
            RunError: the folder is another run's.
        """
        found = self.lineage()
        if found is None:
            if not keep:
                self.withdraw()
            write_json(self.folder / "config.json", recipe.model_dump(mode="json"))
            lineage.write(self.folder / "lineage.json")
            return
        if (found.name, found.hash) != (self.name, self.hash):
            raise RunError(
                f"{self.folder}: the folder of another run ({found.name}, hash {found.hash[:16]}), not of {self.name} "
                f"({self.hash[:16]}); move it away, or give this recipe another name"
            )
        now = lineage.versions
        changed = [f"{key} {old} -> {now.get(key)}" for key, old in found.versions.items() if now.get(key) != old]
        if changed:
            self.note("warning", f"resumed under other versions, results may differ: {', '.join(changed)}")

    def withdraw(self) -> None:
        """Empty the folder of a run that has nothing to go on from, but for the lease."""
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path != self.lease:
                    remove(path)

    def discard(self, reason: str) -> None:
        """Remove the run's weights and what it could go on from, and say so; the caller holds the lease.

        Its settings, lineage, metrics and events stay. It counts as not finished: nobody finds it as a model, and the
        same recipe trains it anew.
        """
        self.note("discarded", reason)
        for path in (self.folder / "manifest.json", self.final, self.best, self.checkpoints):
            remove(path)

    def log(self, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        append_text(self.metrics_file, to_lines([metrics]))

    def metrics(self) -> list[dict[str, float]]:
        """All whole lines of metrics.jsonl, in order; a line that is being written is left for later."""
        return [json.loads(line) for line in whole_lines(self.metrics_file)]

    def last_metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        last: dict[str, float] = {}
        for line in self.metrics():
            last.update(line)
        return last

    def set_metrics(self, lines: Sequence[dict[str, float]]) -> None:
        """Write metrics.jsonl anew."""
        write_text(self.metrics_file, to_lines(lines))

    def note(self, kind: EventKind, message: str, *, step: int | None = None) -> None:
        """Append to events.jsonl; the same warning of the same step, met again after a resume, only once."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        event = Event(kind=kind, message=message, step=step, time=now)
        if kind == "warning" and any(event == old.model_copy(update={"time": now}) for old in self.events()):
            return
        append_text(self.events_file, event.model_dump_json(exclude_none=True) + "\n")

    def events(self) -> list[Event]:
        """What happened to the run, in order; a line that a crash cut short tells nothing."""
        found = []
        for line in whole_lines(self.events_file):
            with suppress(ValidationError):
                found.append(Event.model_validate_json(line))
        return found

    def finish(self, lineage: Lineage) -> Manifest:
        """Write the manifest: from now on the run is finished."""
        for path in [*self.final.rglob("*"), self.final]:
            flush(path)
        others = (manifest.number for manifest in _manifests(self.runs_dir, self.recipe))
        manifest = Manifest(
            **lineage.model_dump(),
            metrics=self.last_metrics(),
            files=folder_files(self.final),
            failures=sum(event.kind == "worker lost" for event in self.events()),
            number=1 + max(others, default=0),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.note("finished", "")
        manifest.write(self.folder / "manifest.json")
        return manifest


def to_lines(rows: Sequence[Any]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def run_of(recipe: Recipe, *, data: str, model: str) -> Run:
    """The run that a recipe stands for, given the hashes of its data and of the model that it starts from."""
    settings = recipe.result_settings()
    identity = {"version": SETTINGS_VERSION, "settings": settings, "data": data, "model": model}
    return Run(place(recipe.runs_dir), recipe.name, json_hash(identity))


def all_runs(runs_dir: Path, refused: list[str]) -> list[Run]:
    """Every run in a runs folder, begun or finished, in the order of their names.

    Args:
        runs_dir: the folder that keeps them.
        refused: is given a sentence for each whose lineage was damaged.
    """

    def below(folder: Path) -> Iterator[Run]:
        try:
            lineage = Lineage.read(folder / "lineage.json")
        except RunError as error:
            refused.append(str(error))
            return
        if lineage is not None:
            yield Run(runs_dir, lineage.recipe, lineage.hash)
            return
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from below(path)

    return list(below(runs_dir)) if runs_dir.is_dir() else []


def find_run(runs_dir: Path, name: str) -> Manifest:
    """The newest finished run of the recipe `name`, or the finished run called `name`.

    Raises:
        RunError: there is none; the message says what is there.
    """
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise RunError(f"run:{name}: no name of a recipe or run; expected one such as run:quickstart/sft")
    found = list(_manifests(runs_dir, name))
    if found:
        newest = max(found, key=lambda manifest: manifest.number)
        _check_final(runs_dir / newest.name / "final", newest)
        return newest
    unfinished = [folder.name for folder in _folders(runs_dir, name) if (folder / "lineage.json").is_file()]
    state = f"{', '.join(unfinished)} is not finished; train it to its end" if unfinished else "train that recipe first"
    raise RunError(f"run:{name}: no finished run of this name in {runs_dir}; {state}")


def _folders(runs_dir: Path, name: str) -> list[Path]:
    return [runs_dir / name, *runs_dir.glob(f"{glob.escape(name)}-{_HASH_DIGITS}")]


def _manifests(runs_dir: Path, name: str) -> Iterator[Manifest]:
    for folder in _folders(runs_dir, name):
        manifest = Manifest.read(folder / "manifest.json")
        if manifest is None:
            continue
        if manifest.name != str(folder.relative_to(runs_dir)):
            raise RunError(f"{folder}: its manifest is that of {manifest.name}; move the folder back to its place")
        yield manifest


def _check_final(final: Path, manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        path = final / name
        size = path.stat().st_size if path.is_file() else None
        if size != file["size"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise RunError(
                f"{path}: {found}, its run's manifest says {file['size']:,}; put the file back, or remove "
                f"{final.parent} and train it again"
            )


def read_recipe(run: Run) -> Recipe:
    """The recipe as it was when the run began.

    Raises:
        RunError: config.json is missing or is no recipe.
    """
    path = run.folder / "config.json"
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise RunError(f"{path}: no recipe ({str(error).splitlines()[0]}); put the original back") from None
