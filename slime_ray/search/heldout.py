"""Pairs that no trial is trained on, in two parts: one selects among trials, the other says how good the winner is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slime_ray.config.data import DataConfig
from slime_ray.data.preferences import Skipped, read_any, read_preferences
from slime_ray.data.sources import content_hash
from slime_ray.data.split import part_of, prompt_key
from slime_ray.errors import DataError
from slime_ray.sealed import Sealed

if TYPE_CHECKING:
    from slime_ray.training.scoring import Score

FILE = "heldout.json"


class HeldOut(Sealed):
    """Which pairs select and which report; kept in a study's folder.

    Attributes:
        entry: file, folder or hub name.
        content: the hash of what is in it.
        selecting, reporting: `file:line` of their pairs; pairs of one prompt are in one part.
        checks: pairs with a checkable answer, in each part.
    """

    entry: str
    content: str
    selecting: tuple[str, ...]
    reporting: tuple[str, ...]
    checks: tuple[int, int]

    @classmethod
    def of(cls, entry: str) -> HeldOut:
        """Divide a preference file by prompt into halves, always in the same way.

        Raises:
            DataError: it cannot be read, or has fewer than two prompts.
        """
        pairs = [row for row in read_preferences(entry) if not isinstance(row, Skipped)]
        # Hashes are in no order that a file could have: every other prompt by them is a draw.
        keys = sorted({prompt_key(pair.prompt) for pair in pairs})
        if len(keys) < 2:
            raise DataError(
                f"{entry}: {len(keys)} usable prompt; held-out pairs are divided by prompt into a part that "
                "selects and one that reports: give more"
            )
        chosen = set(keys[::2])
        selects = [prompt_key(pair.prompt) in chosen for pair in pairs]
        both = [[p for p, in_it in zip(pairs, selects, strict=True) if in_it == part] for part in (True, False)]
        return cls(
            entry=entry,
            content=content_hash([entry]),
            selecting=tuple(pair.source for pair in both[0]),
            reporting=tuple(pair.source for pair in both[1]),
            checks=(sum(p.check is not None for p in both[0]), sum(p.check is not None for p in both[1])),
        )

    def parts(self, score: Score) -> tuple[Score, Score]:
        """A score on the selecting part alone, and on the reporting part."""
        return _only(score, set(self.selecting)), _only(score, set(self.reporting))


def read_heldout(folder: Path) -> HeldOut | None:
    """The parts that a study's folder was begun with, None where it has not begun.

    Raises:
        RunError: the file was changed.
    """
    return HeldOut.read(folder / FILE)


def refuse_known(entry: str, data: DataConfig, *, stopping: bool) -> None:
    """See that no held-out prompt is trained on.

    Args:
        entry: the held-out pairs.
        data: of the varied recipe.
        stopping: trials are stopped by what they do on `data.eval`, so nothing of it may be held out either.

    Raises:
        DataError: a prompt is in both; file and line of the first, and how many there are.
    """
    held = {prompt_key(row.prompt): row.source for row in reversed(list(_rows([entry], None)))}
    parts = [("data.train", data.train, data if data.part != "all" else None)]
    if stopping:
        parts.append(("data.eval", data.eval, None))
    for key, entries, split in parts:
        known = {held[found]: row.source for row in _rows(entries, split) if (found := prompt_key(row.prompt)) in held}
        if known:
            first = next(source for source in reversed(held.values()) if source in known)
            raise DataError(
                f"{first}: its prompt is in the recipe's {key} too ({known[first]}), as are those of {len(known) - 1} "
                "more held-out pairs; a study needs pairs that no trial has seen: name another file in `heldout`"
            )


def _rows(entries: Iterable[str], split: DataConfig | None) -> Iterator:
    for entry in entries:
        for _, row in read_any(entry):
            if not isinstance(row, Skipped) and (split is None or part_of(row.prompt, split.split) == split.part):
                yield row


def _only(score: Score, sources: set[str]) -> Score:
    kept = [place for place, source in enumerate(score.sources) if source in sources]
    return replace(
        score,
        sources=tuple(score.sources[place] for place in kept),
        chosen=tuple(score.chosen[place] for place in kept),
        rejected=tuple(score.rejected[place] for place in kept),
        answers=tuple(score.answers[place] for place in kept) if score.answers else (),
    )
