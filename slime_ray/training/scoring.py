"""A checkpoint on held-out pairs: likelihoods, preference accuracy, and answers that a program can check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slime_ray.config.data import DataConfig
from slime_ray.config.model import ModelConfig
from slime_ray.config.training import TrainingConfig
from slime_ray.data.batching import Lengths
from slime_ray.data.chat_format import ChatFormat, load_tokenizer
from slime_ray.data.preferences import Preference, Skipped, read_preferences
from slime_ray.data.sources import content_hash
from slime_ray.data.token_cache import prepare_tokens
from slime_ray.errors import DataError
from slime_ray.evaluation.checks import passes
from slime_ray.model.export import pad_id
from slime_ray.model.loading import check_vocabulary, load_model
from slime_ray.model.policy import Policy
from slime_ray.model.source import ModelSource, find_model
from slime_ray.storage import json_hash, write_json
from slime_ray.training.generation import generate
from slime_ray.training.measurement import TokenizedRows, reference_logps

# Raised when the same checkpoint and data would give another score, so that no stored one is taken for it.
_SCORE_VERSION = 2
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Answer:
    """What a checkpoint answered to one prompt; `passed` is None where the row has no check."""

    source: str
    prompt: str
    greedy: str
    sampled: str
    greedy_passed: bool | None
    sampled_passed: bool | None


@dataclass(frozen=True)
class Mean:
    """A mean and half the width of its 95 % interval (normal approximation over the pairs)."""

    value: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Raises ValueError where there is nothing to average."""
        if not values:
            raise ValueError("no values")
        spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), float(1.96 * spread / math.sqrt(len(values))))


@dataclass(frozen=True)
class Score:
    """One checkpoint on held-out pairs.

    Attributes:
        model: as it was named.
        sources: file:line of each pair that its tokenizer and length leave usable.
        chosen, rejected: mean token log-probability of each pair's answers, in nats.
        answers: one for each pair, greedy and sampled at temperature 1; none if none were generated.
    """

    model: str
    sources: tuple[str, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]
    answers: tuple[Answer, ...]

    def means(self) -> dict[str, Mean]:
        """The figures by name; those of checked answers are left out where no row has a check."""
        pairs = list(zip(self.chosen, self.rejected, strict=True))
        values: dict[str, list[float]] = {
            "chosen log-prob": list(self.chosen),
            "rejected log-prob": list(self.rejected),
            "accuracy": [float(chosen > rejected) for chosen, rejected in pairs],
            "margin": [chosen - rejected for chosen, rejected in pairs],
            "checked, greedy": [float(a.greedy_passed) for a in self.answers if a.greedy_passed is not None],
            "checked, sampled": [float(a.sampled_passed) for a in self.answers if a.sampled_passed is not None],
        }
        return {name: Mean.of(numbers) for name, numbers in values.items() if numbers}


def score(name: str, pairs: str, *, runs_dir: Path, max_length: int, max_new_tokens: int) -> Score:
    """Score a checkpoint on the pairs of a file; a score that was computed before is read back.

    Args:
        name: run:NAME, a folder or a hub name.
        pairs: a preference file; a row's `check` says what a right answer is.
        max_length: tokens of prompt and answer together.
        max_new_tokens: where a generated answer is cut off; 0 generates none.

    Raises:
        SlimeRayError: the model or the file cannot be used.
    """
    source = find_model(name, runs_dir=runs_dir, key="model")
    data = DataConfig(train=[pairs], max_length=max_length)
    # With the file's name, since a score names its lines.
    content = [pairs, content_hash(data.train)]
    key = json_hash([_SCORE_VERSION, source.content, content, data.max_length, max_new_tokens])
    stored = runs_dir / ".cache" / "scores" / f"{key}.json"
    if stored.is_file():
        return replace(load_score(stored), model=name)
    found = _compute(source, name, data, runs_dir=runs_dir, max_new_tokens=max_new_tokens)
    write_json(stored, asdict(found))
    return found


def check_comparable(scores: Sequence[Score]) -> None:
    """Refuse to put figures over different pairs side by side.

    Raises:
        DataError: a checkpoint's tokenizer or length leaves other pairs usable than the first one's.
    """
    first = set(scores[0].sources)
    for score in scores[1:]:
        if differing := first.symmetric_difference(score.sources):
            raise DataError(
                f"{min(differing)}: usable for only one of {scores[0].model} and {score.model} "
                f"(and {len(differing) - 1} more); raise --max-length, or score these pairs for each by itself"
            )


def _compute(source: ModelSource, name: str, data: DataConfig, *, runs_dir: Path, max_new_tokens: int) -> Score:
    settings = ModelConfig(name=source.location)
    chat = ChatFormat.of(load_tokenizer(source.pinned, None))
    model = load_model(source, settings)
    check_vocabulary(model.config, chat.tokenizer, source, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = Policy(model, lora=None, device=device)

    prepared = prepare_tokens(data, chat, pairs=True, cache_dir=runs_dir / ".cache" / "tokens")
    rows = TokenizedRows(prepared.train, Lengths.of(prepared.train), pad_id(chat.tokenizer, chat.require_end_of_turn()))
    model.eval()
    sums = reference_logps(policy, rows, TrainingConfig())
    return Score(
        model=name,
        sources=tuple(rows.dataset["source"]),
        chosen=tuple((sums.chosen / rows.lengths.chosen).tolist()),
        rejected=tuple((sums.rejected / rows.lengths.rejected).tolist()),
        answers=_answers(policy, chat, rows, _pairs_by_source(data), max_new_tokens=max_new_tokens),
    )


def _answers(
    policy: Policy, chat: ChatFormat, rows: TokenizedRows, pairs: dict[str, Preference], *, max_new_tokens: int
) -> tuple[Answer, ...]:
    if max_new_tokens == 0:
        return ()
    prompts, sources = rows.dataset["prompt_ids"], rows.dataset["source"]
    texts: dict[str, list[str]] = {}
    for way, seed in (("greedy", None), ("sampled", _SAMPLE_SEED)):
        ids = generate(
            policy.plain,
            prompts,
            stop_ids=[chat.require_end_of_turn()],
            pad_id=rows.pad_id,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        texts[way] = chat.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return tuple(
        Answer(
            source=source,
            prompt="\n".join(f"{message['role']}: {message['content']}" for message in pairs[source].prompt),
            greedy=greedy,
            sampled=sampled,
            greedy_passed=_passed(pairs[source], greedy),
            sampled_passed=_passed(pairs[source], sampled),
        )
        for source, greedy, sampled in zip(sources, texts["greedy"], texts["sampled"], strict=True)
    )


def _pairs_by_source(data: DataConfig) -> dict[str, Preference]:
    rows = (row for entry in data.train for row in read_preferences(entry))
    return {row.source: row for row in rows if not isinstance(row, Skipped)}


def _passed(pair: Preference, answer: str) -> bool | None:
    return None if pair.check is None else passes(pair.check, answer)


def load_score(path: Path) -> Score:
    """A score that was written down with `asdict`.

    Raises:
        FileNotFoundError: there is none.
    """
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    answers = tuple(Answer(**answer) for answer in values.pop("answers"))
    numbers = {key: tuple(values[key]) for key in ("sources", "chosen", "rejected")}
    return Score(model=values["model"], answers=answers, **numbers)
