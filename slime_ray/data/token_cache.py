"""Tokenised rows on disk: written once for a data set, a tokenizer and the settings, and memory-mapped from then on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from slime_ray.config.data import DataConfig
from slime_ray.copies import fetch, upload
from slime_ray.data.preferences import Skipped, holds_pairs, read_demonstrations, read_preferences
from slime_ray.data.row_count import RowCount
from slime_ray.data.sources import content_hash
from slime_ray.data.split import Part, part_of, prompt_key
from slime_ray.data.token_part import PartFacts, strict_error, write_part
from slime_ray.data.tokenization import ChatFormat, row_tokenizer, tokenizer_hash
from slime_ray.data.tokenizer_pool import Numbered, Row, TokenizerPool
from slime_ray.errors import ConfigError, DataError
from slime_ray.storage import cache_home, is_local, json_hash

if TYPE_CHECKING:
    from datasets import Dataset

# Raised when the same settings give other tokens or other columns, so that no older cache is taken for the new one.
TOKENS_VERSION = 2

Reader = Callable[[str], Iterator[Row]]

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
    """Memory-mapped rows, those of each entry after those of the entry before, and what was skipped and cut.

    The columns: prompt_ids, chosen_ids, rejected_ids (int32 lists; the last null for demonstrations), chosen_trained
    (a truth value for each of chosen_ids; null where all are trained) and source (``file:line``).
    """

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

    `data.turns` "all" trains on every answer of a conversation; a pair, also one that SFT reads, has one.

    Raises:
        ConfigError: `data.turns` is "all" and the objective trains on pairs.
        DataError: a file cannot be read, nothing usable is in it, or `data.strict` and a row must be skipped.
        ModelError: the chat template has no end-of-turn token.
    """
    chat.require_end_of_turn()
    if pairs and data.turns == "all":
        raise ConfigError(
            'data.turns = "all" trains on every answer of a demonstration, and the objective trains on pairs, which '
            'have one answer; unset data.turns, or set loss.kind = "sft"'
        )
    folder = cache_dir / _cache_key(data, chat, pairs=pairs)
    if not (folder / _FACTS).exists():
        work = cache_dir if is_local(cache_dir) else cache_home()
        unfinished = work / f".{folder.name[:16]}-{uuid.uuid4().hex[:8]}"
        unfinished.mkdir(parents=True)
        with _sigterm_unwinds():
            try:
                _write(unfinished, data, chat, pairs=pairs)
                _publish(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    prepared = open_tokens(folder)
    for part in (prepared.train_facts, prepared.eval_facts):
        if data.strict and part is not None and part.first_skipped is not None:
            raise strict_error(part.first_skipped)
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
        # The names too: they are in the column `source`.
        "train": [[entry, content_hash([entry])] for entry in data.train],
        "eval": [[entry, content_hash([entry])] for entry in data.eval],
        "tokenizer": tokenizer_hash(chat.tokenizer),
        "pairs": pairs,
        "settings": data.model_dump(exclude={"train", "weights", "eval", "strict"}) | {"prompt_room": data.prompt_room},
    }
    return json_hash(key)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does, so that what is half-written is removed."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
        eval_facts = _write_part(folder / "eval.arrow", rows, "data.eval", data, chat, entries=len(data.eval))
        _require_rows(eval_facts, "data.eval", data)

    rows = _read(data.train, read_preferences if pairs else read_demonstrations)
    if data.part != "all":
        rows = _of_part(rows, data.part, data)
    rows = _noting(rows, lambda key: in_both.update({key} & in_eval))
    entries = len(data.train)
    train_facts = _write_part(folder / "train.arrow", rows, "data.train", data, chat, entries=entries, limit=data.limit)
    _require_rows(train_facts, "data.train", data)

    if not data.eval and data.part != "all":
        rows = _of_part(_read(data.train, _eval_reader(data.train, pairs=pairs)), "heldout", data)
        # A row that cannot be read as a pair belongs to no part; it is counted once, with the training part.
        rows = ((entry, row) for entry, row in rows if not isinstance(row, Skipped))
        facts = _write_part(folder / "eval.arrow", rows, "data.train, held out", data, chat, entries=entries)
        eval_facts = facts if facts.rows else None
    facts = _Facts(train=train_facts, eval=eval_facts, overlap=len(in_both))
    (folder / _FACTS).write_text(facts.model_dump_json(), encoding="utf-8")


def _write_part(
    path: Path,
    rows: Iterator[Numbered],
    what: str,
    data: DataConfig,
    chat: ChatFormat,
    *,
    entries: int,
    limit: int | None = None,
) -> PartFacts:
    with RowCount(what) as count, TokenizerPool(row_tokenizer(data, chat)) as pool:
        tokenized = pool.over(count.over(rows))
        return write_part(path, tokenized, entries=entries, strict=data.strict, limit=limit)


def _eval_reader(entries: Sequence[str], *, pairs: bool) -> Reader:
    """Both answers wherever all files have them; else every file gives demonstrations, so that all rows are alike."""
    return read_preferences if pairs or all(map(holds_pairs, entries)) else read_demonstrations


def _read(entries: Sequence[str], reader: Reader) -> Iterator[Numbered]:
    return ((number, row) for number, entry in enumerate(entries) for row in reader(entry))


def _of_part(rows: Iterator[Numbered], part: Part, data: DataConfig) -> Iterator[Numbered]:
    return ((entry, row) for entry, row in rows if isinstance(row, Skipped) or part_of(row.prompt, data.split) == part)


def _noting(rows: Iterator[Numbered], note: Callable[[str], None]) -> Iterator[Numbered]:
    for entry, row in rows:
        if not isinstance(row, Skipped):
            note(prompt_key(row.prompt))
        yield entry, row


def _require_rows(facts: PartFacts, key: str, data: DataConfig) -> None:
    if facts.rows:
        return
    entries = ", ".join(data.eval if key == "data.eval" else data.train)
    if facts.first_skipped is None:
        raise DataError(f"{key} = {entries}: no prompt falls into data.part = {data.part!r}; give more rows")
    reasons = ", ".join(f"{rows.count} {reason}" for reason, rows in facts.skipped.items())
    advice = "run `slime-ray inspect` on it"
    if "no_room" in facts.skipped:
        advice = (
            f"a prompt cut to {data.prompt_room} tokens leaves no room for an answer in data.max_length = "
            f"{data.max_length}; raise data.max_length or lower data.max_prompt_length"
        )
    first = facts.first_skipped.source
    raise DataError(f"{key} = {entries}: no usable row ({reasons}; the first is {first}); {advice}")


def _mapped(path: Path) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(str(path))
