"""Files on a local folder: hashed by content, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: into a neighbour first, which then takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    neighbour.write_text(text, encoding="utf-8")
    os.replace(neighbour, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below a folder, by its path in it; hidden files are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": file_hash(p)} for p in files}


def text_hash(parts: Iterable[str]) -> str:
    """The SHA-256 of some texts, each with its length, so that no two lists of texts give the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return text_hash([json.dumps(value, sort_keys=True)])
