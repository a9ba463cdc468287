"""Tokenised rows on disk: written once for a data set, a tokenizer and the settings, and memory-mapped from then on."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from slime_ray.config.data import DataConfig
from slime_ray.data.preferences import (
    Demonstration,
    Preference,
    Skipped,
    SkipReason,
    holds_pairs,
    read_demonstrations,
    read_preferences,
)
from slime_ray.data.sources import content_hash
from slime_ray.data.split import Part, part_of, prompt_key
from slime_ray.data.tokenization import ChatFormat, TokenizedRow, tokenize, tokenizer_hash
from slime_ray.errors import DataError
from slime_ray.storage import cache_home, fetch, is_local, json_hash, upload

if TYPE_CHECKING:
    from datasets import Dataset

# Raised when the same settings give other tokens, so that no older cache is taken for the new one.
TOKENS_VERSION = 1
_ROWS_PER_BATCH = 512

Row = Preference | Demonstration | Skipped
Reader = Callable[[str], Iterator[Row]]


class PartFacts(BaseModel):
    """What became of the rows of one part: ``rows`` usable ones, of which so many had something cut off."""

    model_config = ConfigDict(frozen=True)

    rows: int
    skipped: tuple[Skipped, ...]
    prompt_cut: int
    completion_cut: int
    doubled_bos: int

    @property
    def skipped_by_reason(self) -> dict[SkipReason, list[str]]:
        """The places (``file:line``) of the skipped rows, by reason."""
        places: dict[SkipReason, list[str]] = {}
        for row in self.skipped:
            places.setdefault(row.reason, []).append(row.source)
        return places


# Written last.
_FACTS = "facts.json"


class _Facts(BaseModel):
    """facts.json of a cache folder. ``overlap`` counts the training prompts that the eval files have too."""

    model_config = ConfigDict(frozen=True)

    train: PartFacts
    eval: PartFacts | None
    overlap: int


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Memory-mapped rows with the columns prompt_ids, chosen_ids, rejected_ids (int32 lists; the last null for
    demonstrations) and source (``file:line``), and what was skipped and cut."""

    train: Dataset
    eval: Dataset | None
    train_facts: PartFacts
    eval_facts: PartFacts | None
    overlap: int
    folder: Path


def prepare_tokens(data: DataConfig, chat: ChatFormat, *, pairs: bool, cache_dir: Path) -> PreparedData:
    """Tokenise `data.train` and what it is evaluated on, or find that done in ``cache_dir``.

    ``pairs`` says that the objective needs preference data; without it `data.train` is read as demonstrations, and the
    evaluation still keeps both answers where its files have pairs. Evaluation is on `data.eval`, else, where a part of
    the split is trained on, on the held-out part of `data.train`, else None.

    Raises:
        DataError: a file cannot be read, nothing usable is in it, or `data.strict` and a row must be skipped.
        ModelError: the chat template has no end-of-turn token.
    """
    chat.require_end_of_turn()
    folder = cache_dir / _cache_key(data, chat, pairs=pairs)
    if not (folder / _FACTS).exists():
        work = cache_dir if is_local(cache_dir) else cache_home()
        unfinished = work / f".{folder.name[:16]}-{uuid.uuid4().hex[:8]}"
        unfinished.mkdir(parents=True)
        try:
            _write(unfinished, data, chat, pairs=pairs)
            _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    prepared = open_tokens(folder)
    for part in (prepared.train_facts, prepared.eval_facts):
        if data.strict and part is not None and part.skipped:
            raise _strict_error(part.skipped[0])
    return prepared


def open_tokens(folder: Path) -> PreparedData:
    """Memory-map what `prepare_tokens` wrote into a folder of its cache."""
    here = fetch(folder)
    facts = _Facts.model_validate_json((here / _FACTS).read_text(encoding="utf-8"))
    return PreparedData(
        train=_mapped(here / "train.arrow"),
        eval=_mapped(here / "eval.arrow") if facts.eval is not None else None,
        train_facts=facts.train,
        eval_facts=facts.eval,
        overlap=facts.overlap,
        folder=folder,
    )


def _cache_key(data: DataConfig, chat: ChatFormat, *, pairs: bool) -> str:
    key = {
        "version": TOKENS_VERSION,
        "train": [data.train, content_hash(data.train)],  # the names too: they are in the column `source`
        "eval": [data.eval, content_hash(data.eval)],
        "tokenizer": tokenizer_hash(chat.tokenizer),
        "pairs": pairs,
        "settings": data.model_dump(exclude={"train", "eval", "strict"}) | {"prompt_room": data.prompt_room},
    }
    return json_hash(key)


def _publish(unfinished: Path, folder: Path) -> None:
    """Give the finished folder its name; a second writer finds the name taken and leaves the first one's work."""
    if not is_local(folder):
        upload(unfinished, folder, last=_FACTS)
        return
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise


def _write(folder: Path, data: DataConfig, chat: ChatFormat, *, pairs: bool) -> None:
    in_eval: set[str] = set()
    in_both: set[str] = set()
    eval_facts: PartFacts | None = None
    if data.eval:
        rows = _noting(_read(data.eval, _eval_reader(data.eval, pairs=pairs)), in_eval.add)
        eval_facts = _write_part(folder / "eval.arrow", _tokenized(rows, data, chat), strict=data.strict, limit=None)
        _require_rows(eval_facts, "data.eval", data)

    rows = _read(data.train, read_preferences if pairs else read_demonstrations)
    if data.part != "all":
        rows = _of_part(rows, data.part, data)
    rows = _noting(rows, lambda key: in_both.update({key} & in_eval))
    rows = _tokenized(rows, data, chat)
    train_facts = _write_part(folder / "train.arrow", rows, strict=data.strict, limit=data.limit)
    _require_rows(train_facts, "data.train", data)

    if not data.eval and data.part != "all":
        rows = _of_part(_read(data.train, _eval_reader(data.train, pairs=pairs)), "heldout", data)
        # A row that cannot be read as a pair belongs to no part; it is counted once, with the training part.
        rows = (row for row in rows if not isinstance(row, Skipped))
        facts = _write_part(folder / "eval.arrow", _tokenized(rows, data, chat), strict=data.strict, limit=None)
        eval_facts = facts if facts.rows else None
    facts = _Facts(train=train_facts, eval=eval_facts, overlap=len(in_both))
    (folder / _FACTS).write_text(facts.model_dump_json(), encoding="utf-8")


def _eval_reader(entries: Sequence[str], *, pairs: bool) -> Reader:
    """Both answers wherever all files have them; else every file gives demonstrations, so that all rows are alike."""
    return read_preferences if pairs or all(map(holds_pairs, entries)) else read_demonstrations


def _read(entries: Sequence[str], reader: Reader) -> Iterator[Row]:
    for entry in entries:
        yield from reader(entry)


def _of_part(rows: Iterator[Row], part: Part, data: DataConfig) -> Iterator[Row]:
    return (row for row in rows if isinstance(row, Skipped) or part_of(row.prompt, data.split) == part)


def _noting(rows: Iterator[Row], note: Callable[[str], None]) -> Iterator[Row]:
    for row in rows:
        if not isinstance(row, Skipped):
            note(prompt_key(row.prompt))
        yield row


def _tokenized(rows: Iterator[Row], data: DataConfig, chat: ChatFormat) -> Iterator[TokenizedRow | Skipped]:
    for row in rows:
        if isinstance(row, Skipped):
            yield row
        else:
            yield tokenize(row, chat, max_length=data.max_length, prompt_room=data.prompt_room)


def _write_part(path: Path, rows: Iterator[TokenizedRow | Skipped], *, strict: bool, limit: int | None) -> PartFacts:
    """Write the usable rows as an Arrow stream, a batch at a time, and count what became of the others."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    columns = {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "source": pyarrow.string()}
    schema = pyarrow.schema(list(columns.items()))
    skipped: list[Skipped] = []
    usable = itertools.islice(_usable(rows, skipped, strict=strict), limit)
    counts: Counter[str] = Counter()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        while batch := list(itertools.islice(usable, _ROWS_PER_BATCH)):
            values = [[getattr(row, column) for row in batch] for column in columns]
            stream.write_batch(pyarrow.record_batch(values, schema=schema))
            counts["rows"] += len(batch)
            counts["prompt_cut"] += sum(row.prompt_cut > 0 for row in batch)
            counts["completion_cut"] += sum(row.completion_cut > 0 for row in batch)
            counts["doubled_bos"] += sum(row.doubled_bos for row in batch)
    return PartFacts(
        rows=counts["rows"],
        skipped=tuple(skipped),
        prompt_cut=counts["prompt_cut"],
        completion_cut=counts["completion_cut"],
        doubled_bos=counts["doubled_bos"],
    )


def _usable(rows: Iterator[TokenizedRow | Skipped], skipped: list[Skipped], *, strict: bool) -> Iterator[TokenizedRow]:
    for row in rows:
        if not isinstance(row, Skipped):
            yield row
        elif strict:
            raise _strict_error(row)
        else:
            skipped.append(row)


def _require_rows(facts: PartFacts, key: str, data: DataConfig) -> None:
    if facts.rows:
        return
    entries = ", ".join(data.eval if key == "data.eval" else data.train)
    if not facts.skipped:
        raise DataError(f"{key} = {entries}: no prompt falls into data.part = {data.part!r}; give more rows")
    reasons = ", ".join(f"{len(places)} {reason}" for reason, places in facts.skipped_by_reason.items())
    advice = "run `slime-ray inspect` on it"
    if "no_room" in facts.skipped_by_reason:
        advice = (
            f"a prompt cut to {data.prompt_room} tokens leaves no room for an answer in data.max_length = "
            f"{data.max_length}; raise data.max_length or lower data.max_prompt_length"
        )
    raise DataError(f"{key} = {entries}: no usable row ({reasons}; the first is {facts.skipped[0].source}); {advice}")


def _strict_error(row: Skipped) -> DataError:
    return DataError(f"{row.source}: {row.reason}, and data.strict allows no skipped row; mend it or unset data.strict")


def _mapped(path: Path) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(str(path))
