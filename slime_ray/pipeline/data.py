"""A look at what a pipeline is about to train on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from slime_ray.config.recipe import Recipe
from slime_ray.data.inspection import FileInspection, inspect
from slime_ray.errors import DataError
from slime_ray.model.source import find_model
from slime_ray.storage import place


def look(entries: Mapping[str, Recipe], *, say: Callable[[str], None]) -> None:
    """Tell in a line an entry what is in it and what is wrong with it.

    Args:
        entries: files, folders or hub names, each with a recipe that trains on it and whose model is there.
        say: is told.

    Raises:
        DataError: an entry cannot be read, no row of it can teach, or one cannot and `data.strict` is on.
        ModelError, RunError: the tokenizer is not there.
    """
    for entry, recipe in entries.items():
        name = recipe.model.tokenizer or recipe.model.name
        tokenizer = find_model(name, runs_dir=place(recipe.runs_dir)).pinned
        for file in inspect([entry], recipe, tokenizer=tokenizer).files:
            say(f"inspect: {_line(file)}")
            _check(file, strict=recipe.data.strict)


def _line(file: FileInspection) -> str:
    skipped = ", ".join(f"{reason} {count}" for reason, count in file.skipped.items() if count)
    problems = file.template_problems
    counts = {
        "template problems": sum(problems.model_dump(exclude={"examples"}).values()) if problems else 0,
        "prompts cut": file.truncated.prompt if file.truncated else 0,
        "answers cut": file.truncated.completion if file.truncated else 0,
        "duplicate pairs": file.duplicate_pairs,
        "contradicting pairs": file.contradicting_pairs,
        "prompts in train and eval": file.prompts_in_train_and_eval,
    }
    found = [f"{file.rows:,} rows", f"{file.usable:,} usable", *([f"skipped: {skipped}"] if skipped else [])]
    return f"{file.path}: {', '.join([*found, *(f'{count:,} {what}' for what, count in counts.items() if count)])}"


def _check(file: FileInspection, *, strict: bool) -> None:
    hint = f"slime-ray inspect {shlex.quote(file.path)} says which and why"
    refused = file.template_problems.refused if file.template_problems else 0
    if file.usable <= refused:
        raise DataError(f"{file.path}: none of its {file.rows:,} rows is usable; {hint}")
    if strict and file.usable < file.rows:
        raise DataError(f"{file.path}: {file.rows - file.usable:,} rows cannot teach, and data.strict is on; {hint}")
