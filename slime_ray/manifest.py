"""What a run is made from, and what it made: the records in its folder."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from slime_ray.sealed import Sealed

# The packages whose version may change a result.
_PACKAGES = ("slime-ray", "torch", "transformers", "tokenizers", "peft", "ray", "numpy")


class Lineage(Sealed):
    """What a run is made from; written when it begins.

    Attributes:
        name: the run's name, the folder below the runs folder.
        recipe: the recipe's name.
        hash: what the name's last 8 digits begin: settings that change the result, data and parent.
        data, model: hashes of the data's and the starting model's content.
        parent: the name of the run whose model this one starts from.
        versions: of this code and the packages that trained it.
    """

    name: str
    recipe: str
    hash: str
    data: str
    model: str
    parent: str | None
    versions: dict[str, str]


class Manifest(Lineage):
    """What a finished run was made from and what it made; written last.

    Attributes:
        metrics: the last value of every metric.
        files: size and hash of every file of final/.
        failures: times that workers were lost on the way.
        number: counts the finished runs of a recipe, so that the newest is known without a clock.
        finished: when, UTC, ISO 8601; for people.
    """

    metrics: dict[str, float]
    files: dict[str, dict[str, Any]]
    failures: int
    number: int
    finished: str


@cache
def versions() -> dict[str, str]:
    """Of the packages that may change a result; of this code also the hash of its files."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes() + b"\0")
    return found | {"slime-ray": f"{found['slime-ray']}+{digest.hexdigest()[:8]}"}
