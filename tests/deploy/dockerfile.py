"""docker/Dockerfile, read: its stages with what they run, copy and set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests.deploy.manifests import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"


@dataclass
class Stage:
    """One stage.

    Attributes:
        base: what it begins from: an image, or a stage.
        steps: its instructions in order, as (RUN, line).
    """

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """What an instruction says, each time."""
        return [text for word, text in self.steps if word == instruction]

    def command(self, instruction: str) -> list[str]:
        """The words of CMD, or of a HEALTHCHECK's."""
        (text,) = self.all(instruction)
        return json.loads(text[text.index("[") :])


def read() -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first stage with their defaults, and the stages by name."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, text in _instructions(DOCKERFILE.read_text(encoding="utf-8")):
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
            stages[name] = stage = Stage(name, base)
        elif stage is None:
            assert word == "ARG"
            name, _, default = text.partition("=")
            arguments[name] = default
        else:
            stage.steps.append((word, text))
    return arguments, stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, re.sub(r"\s+", " ", rest).strip()


ARGUMENTS, STAGES = read()
VARIABLES = dict(pair.split("=", 1) for text in STAGES["node"].all("ENV") for pair in text.split())
"""What the images set."""


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the repository from the builder; its last line that fits decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            names = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
            above = [path, *(str(parent) for parent in Path(path).parents)]
            if any(fnmatch(each, name) for each in above for name in names):
                verdict = not line.startswith("!")
    return verdict
