"""What is in data files and what is wrong with them, before any GPU is paid for."""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from slime_ray.config.data import DataConfig
from slime_ray.config.recipe import Recipe
from slime_ray.data.chat_format import ChatFormat, ChatTemplateError, TemplateProblem, load_tokenizer
from slime_ray.data.messages import Message, canonical
from slime_ray.data.preferences import (
    Demonstration,
    Preference,
    Skipped,
    SkipReason,
    as_demonstration,
    read_any,
    read_demonstrations,
)
from slime_ray.data.row_count import RowCount
from slime_ray.data.split import prompt_key
from slime_ray.data.tokenization import TokenizedRow, row_tokenizer


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class SkippedRow(_Facts):
    """A row that cannot teach; ``source`` is ``file:line``."""

    source: str
    reason: SkipReason


class Spread(_Facts):
    """Lengths over all usable rows; median and p95 are lengths that occur (nearest rank)."""

    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Spread | None:
        """None where there is no length."""
        ordered = sorted(lengths)
        if not ordered:
            return None
        median, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(min=ordered[0], median=median, p95=p95, max=ordered[-1])


class Lengths(_Facts):
    """Before anything is cut; ``rejected`` is None for SFT data.

    Under a recipe whose SFT trains on all turns, ``prompt`` ends before the first answer and ``chosen`` is the rest.
    """

    unit: Literal["tokens", "characters"]
    prompt: Spread | None
    chosen: Spread | None
    rejected: Spread | None


class Truncated(_Facts):
    """Rows of which something is cut at ``max_length`` tokens."""

    max_length: int
    prompt: int
    completion: int


class TemplateProblems(_Facts):
    """Rows for which the chat template fails; ``examples`` has the first sentence of each kind.

    Training collapses a doubled beginning-of-sequence token and ends at any of the others.
    """

    refused: int
    no_continuation: int
    missing_end_of_turn: int
    doubled_bos: int
    examples: tuple[str, ...]


class FileInspection(_Facts):
    """One file, folder or hub name.

    From ``system`` on, everything is over the usable rows, among which are those for which the chat template fails, but
    for ``lengths`` and what needs tokens. ``repeated_prompts``: rows beyond a prompt's first.
    ``duplicate_pairs``: rows beyond the first with the same prompt and answers. ``contradicting_pairs``: rows with an
    answer that is chosen in one row and rejected in another of the same prompt. ``chosen_longer``: the share of pairs
    whose chosen answer is the longer one. None: not known without a recipe, or not defined for SFT data.
    """

    path: str
    format: str
    rows: int
    usable: int
    skipped: dict[SkipReason, int]
    system: int
    multi_turn: int
    repeated_prompts: int
    skipped_rows: tuple[SkippedRow, ...]
    lengths: Lengths
    truncated: Truncated | None
    chosen_longer: float | None
    duplicate_pairs: int
    contradicting_pairs: int | None
    prompts_in_train_and_eval: int | None
    template_problems: TemplateProblems | None


class Inspection(_Facts):
    """What was found in each of the paths."""

    files: tuple[FileInspection, ...]

    def to_json(self) -> dict[str, Any]:
        """One path gives its object, several give ``{"files": [...]}``."""
        files = [file.model_dump(mode="json") for file in self.files]
        return files[0] if len(files) == 1 else {"files": files}


def inspect(entries: Sequence[str], recipe: Recipe | None = None, *, tokenizer: str | None = None) -> Inspection:
    """Read files, folders or hub names; with a recipe, also tokenise them as its training would.

    ``tokenizer`` replaces the recipe's, for a caller that has found the folder of a ``run:`` name.

    Raises:
        DataError: an entry cannot be read or has no known format.
        ModelError: the recipe's tokenizer cannot be loaded.
    """
    if recipe is None:
        return Inspection(files=tuple(_inspect_entry(entry, None, None) for entry in entries))
    name = tokenizer or recipe.model.tokenizer or recipe.model.name
    chat = ChatFormat.of(load_tokenizer(name, recipe.model.chat_template))
    trained = _Trained(recipe.data, chat, sft=recipe.loss.kind == "sft")
    keys = _PromptKeys(recipe.data)
    return Inspection(files=tuple(_inspect_entry(entry, trained, keys.beside(entry)) for entry in entries))


@dataclass(frozen=True, slots=True)
class _Trained:
    """Rows as the recipe's training sees them."""

    data: DataConfig
    chat: ChatFormat
    sft: bool

    def tokens(self, row: Preference | Demonstration) -> TokenizedRow | Skipped:
        if self.sft and isinstance(row, Preference):
            row = as_demonstration(row)
        return row_tokenizer(self.data, self.chat)(row)


class _PromptKeys:
    """The prompts of a recipe's files, read when they are first asked for."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._known: dict[tuple[str, ...], frozenset[str]] = {}

    def beside(self, entry: str) -> frozenset[str] | None:
        """For an eval file the prompts of the training files, for any other those of the eval files, if there are."""
        is_eval = entry in self._data.eval or os.path.realpath(entry) in map(os.path.realpath, self._data.eval)
        others = tuple(self._data.train if is_eval else self._data.eval)
        if not others:
            return None
        if others not in self._known:
            rows = (row for other in others for row in read_demonstrations(other))
            self._known[others] = frozenset(prompt_key(row.prompt) for row in rows if not isinstance(row, Skipped))
        return self._known[others]


@dataclass(slots=True)
class _Tally:
    """Counts while the rows go by; of a text only its digest is kept."""

    formats: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    prompts: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    prompt_lengths: array[int] = field(default_factory=lambda: array("I"))
    chosen_lengths: array[int] = field(default_factory=lambda: array("I"))
    rejected_lengths: array[int] = field(default_factory=lambda: array("I"))

    def add(self, row: Preference | Demonstration | Skipped, trained: _Trained | None) -> None:
        self.counts["rows"] += 1
        seen = row if isinstance(row, Skipped) or trained is None else self._tokenized(row, trained)
        if isinstance(row, Skipped) or isinstance(seen, Skipped):
            assert isinstance(seen, Skipped)
            self.skipped.append(seen)
            return
        self._note_texts(row)
        if isinstance(seen, TokenizedRow):
            self._note_tokens(seen)
        elif trained is None:
            answers = [row.completion] if isinstance(row, Demonstration) else [row.chosen, row.rejected]
            self._note_lengths(_characters(row.prompt), *map(_characters, answers))

    def _tokenized(self, row: Preference | Demonstration, trained: _Trained) -> TokenizedRow | Skipped | None:
        try:
            return trained.tokens(row)
        except ChatTemplateError as error:
            self.problems[error.kind] += 1
            self.examples.setdefault(error.kind, str(error))
            return None

    def _note_texts(self, row: Preference | Demonstration) -> None:
        self.counts["usable"] += 1
        self.counts["system"] += any(message["role"] in ("system", "developer") for message in row.prompt)
        self.counts["multi_turn"] += sum(message["role"] == "user" for message in row.prompt) > 1
        key = prompt_key(row.prompt)
        self.prompts[key] += 1
        chosen = row.completion if isinstance(row, Demonstration) else row.chosen
        rejected = None if isinstance(row, Demonstration) else row.rejected
        self.answers.append((_digest(key, chosen), None if rejected is None else _digest(key, rejected)))

    def _note_tokens(self, row: TokenizedRow) -> None:
        self.counts["prompt_cut"] += row.prompt_cut > 0
        self.counts["completion_cut"] += row.completion_cut > 0
        self.problems["doubled_bos"] += row.doubled_bos
        rejected = () if row.rejected_ids is None else (len(row.rejected_ids) + row.rejected_cut,)
        self._note_lengths(len(row.prompt_ids) + row.prompt_cut, len(row.chosen_ids) + row.chosen_cut, *rejected)

    def _note_lengths(self, prompt: int, chosen: int, rejected: int | None = None) -> None:
        self.prompt_lengths.append(prompt)
        self.chosen_lengths.append(chosen)
        if rejected is not None:
            self.rejected_lengths.append(rejected)
            self.counts["chosen_longer"] += chosen > rejected


def _inspect_entry(entry: str, trained: _Trained | None, keys_beside: frozenset[str] | None) -> FileInspection:
    tally = _Tally()
    with RowCount(entry) as count:
        for name, row in count.over(read_any(entry)):
            tally.formats.add(name)
            tally.add(row, trained)
    counts, reasons = tally.counts, Counter(row.reason for row in tally.skipped)
    pairs = [(chosen, rejected) for chosen, rejected in tally.answers if rejected is not None]
    return FileInspection(
        path=entry,
        format=" + ".join(sorted(tally.formats)),
        rows=counts["rows"],
        usable=counts["usable"],
        skipped={reason: reasons[reason] for reason in get_args(SkipReason)},
        system=counts["system"],
        multi_turn=counts["multi_turn"],
        repeated_prompts=_beyond_first(tally.prompts),
        skipped_rows=tuple(SkippedRow(source=row.source, reason=row.reason) for row in tally.skipped),
        lengths=Lengths(
            unit="characters" if trained is None else "tokens",
            prompt=Spread.of(tally.prompt_lengths),
            chosen=Spread.of(tally.chosen_lengths),
            rejected=Spread.of(tally.rejected_lengths),
        ),
        truncated=None if trained is None else _truncated(counts, trained.data),
        chosen_longer=counts["chosen_longer"] / len(tally.rejected_lengths) if tally.rejected_lengths else None,
        duplicate_pairs=_beyond_first(Counter(tally.answers)),
        contradicting_pairs=_contradicting(pairs) if pairs else None,
        prompts_in_train_and_eval=None if keys_beside is None else len(keys_beside & tally.prompts.keys()),
        template_problems=None if trained is None else _template_problems(tally),
    )


def _truncated(counts: Counter[str], data: DataConfig) -> Truncated:
    return Truncated(max_length=data.max_length, prompt=counts["prompt_cut"], completion=counts["completion_cut"])


def _template_problems(tally: _Tally) -> TemplateProblems:
    kinds = {kind: tally.problems[kind] for kind in (*get_args(TemplateProblem), "doubled_bos")}
    return TemplateProblems(**kinds, examples=tuple(tally.examples.values()))


def _contradicting(pairs: Sequence[tuple[bytes, bytes]]) -> int:
    both = {chosen for chosen, _ in pairs} & {rejected for _, rejected in pairs}
    return sum(chosen in both or rejected in both for chosen, rejected in pairs)


def _beyond_first(occurrences: Counter[Any]) -> int:
    return occurrences.total() - len(occurrences)


def _digest(key: str, answer: Sequence[Message]) -> bytes:
    return hashlib.sha256(f"{key}:{canonical(answer)}".encode()).digest()[:16]


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)
