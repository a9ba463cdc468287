"""The commands that manifests give, as they can be run from this checkout instead of an image."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.manifests import ROOT, built

JOBS = ("train", "tune", "evaluate", "pipeline")


@dataclass(frozen=True)
class Place:
    """A folder that stands for a container's /app/recipes and /data.

    Attributes:
        app: what is /app there: the checkout, with the overlay's recipes below it.
        data: what is /data there.
        values: the variables of the overlay.
    """

    app: Path
    data: Path
    values: dict[str, str]

    def text(self, text: str) -> str:
        """A text with its paths in a container as they are here."""
        return text.replace("/app/", f"{self.app}/").replace("/data/", f"{self.data}/")


@dataclass(frozen=True)
class Command:
    """A command line for a shell.

    Attributes:
        line: as the manifest has it, with its paths as they are here.
        words: what the shell makes of it.
        environment: the variables that it is run with.
    """

    line: str
    words: list[str]
    environment: dict[str, str]


def laid_out(overlay: str, folder: Path) -> Place:
    """Lay out an overlay's recipes and the checkout below a folder, as they are in a container."""
    app, data = folder / "app", folder / "data"
    for each in (app / "recipes", data):
        each.mkdir(parents=True)
    for name in ("jobs", "serve"):
        (app / name).symlink_to(ROOT / name)
    maps = {m["metadata"]["name"]: m["data"] for m in built(overlay) if m["kind"] == "ConfigMap"}
    place = Place(app, data, {})
    place.values.update({name: place.text(value) for name, value in maps["values"].items()})
    for name, text in maps["recipes"].items():
        (app / "recipes" / name).write_text(place.text(text), encoding="utf-8")
    return place


def job(overlay: str, name: str, place: Place) -> Command:
    """The entrypoint of a job."""
    (manifest,) = (m for m in built(overlay) if m["kind"] == "RayJob" and m["metadata"]["name"] == f"slime-ray-{name}")
    line = place.text(manifest["spec"]["entrypoint"])
    environment = os.environ | place.values | {"PYTHONPATH": str(place.app)}
    shown = subprocess.run(
        ["sh", "-uc", f'for word in {line}; do printf "%s\\n" "$word"; done'],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return Command(line, shown.stdout.splitlines(), environment)


def words(line: str | list[str]) -> list[str]:
    """A command of a Dockerfile or of compose, which split it without a shell."""
    return shlex.split(line) if isinstance(line, str) else line
