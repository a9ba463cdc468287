"""What a trainer and a server say of the same rows, held against each other: prompts, log-probabilities, stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import isfinite
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Dtype = Literal["float32", "bfloat16", "float16"]
# Nats a token that the server may be away from the trainer: on average (None: not looked at), and at most.
LIMITS: dict[Dtype, tuple[float | None, float]] = {
    "float32": (None, 1e-3),
    "bfloat16": (0.02, 0.3),
    "float16": (0.02, 0.3),
}
# Tokens that are shown around the first that differs.
_AROUND = 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Part):
    """Token ids of prompts.

    Attributes:
        compared: prompts, each under the training's chat template and under the server's.
        mismatches: those of other ids.
        dated: those that are the same but for today's date, which training prints as a fixed one; no mismatch.
        skipped: longer than the server takes.
        first: the first mismatch around the token that differs; None without one.
    """

    compared: int
    mismatches: int
    dated: int
    skipped: int
    first: str | None


class Likelihoods(_Part):
    """Log-probabilities of answers' tokens, the trainer's and the server's.

    Attributes:
        answers: chosen and rejected ones.
        tokens: of them.
        skipped: answers that are longer, with their prompts, than the server takes.
        not_finite: tokens that one of the two gives no finite number for.
        mean_difference, max_difference: absolute, in nats a token, over those that are finite; None without any.
        mean_limit, max_limit: what they may be; None: any.
    """

    answers: int
    tokens: int
    skipped: int
    not_finite: int
    mean_difference: float | None
    max_difference: float | None
    mean_limit: float | None
    max_limit: float


class Stops(_Part):
    """Tokens that end an answer.

    Attributes:
        end_of_turn: what the training's chat template puts after an answer.
        listed: eos_token_id of the checkpoint's generation config.
        stopping: of both, those after which the server was seen to end an answer.
        ordinary: a token that ends none.
        ordinary_stops: whether the server was seen to end an answer after that as well.
    """

    end_of_turn: int
    listed: tuple[int, ...]
    stopping: tuple[int, ...]
    ordinary: int
    ordinary_stops: bool


class PromptIds(NamedTuple):
    """One prompt's token ids: the training's, the server's (or its words, if it refuses the prompt), and the training's
    under today's date."""

    trained: Sequence[int]
    served: Sequence[int] | str
    today: Sequence[int]


class AnswerLogps(NamedTuple):
    """Log-probabilities of one answer's tokens in nats, the trainer's and the server's."""

    trained: Sequence[float]
    served: Sequence[float]


def compare_prompts(pairs: Sequence[PromptIds], *, decode: Callable[[list[int]], str], skipped: int) -> Prompts:
    """Compare token ids; `decode` gives the text of some."""
    differing = [pair for pair in pairs if list(pair.trained) != list(pair.served)]
    wrong = [pair for pair in differing if list(pair.today) != list(pair.served)]
    return Prompts(
        compared=len(pairs),
        mismatches=len(wrong),
        dated=len(differing) - len(wrong),
        skipped=skipped,
        first=_shown(wrong[0], decode) if wrong else None,
    )


def _shown(pair: PromptIds, decode: Callable[[list[int]], str]) -> str:
    """Where a prompt's ids begin to differ, with the tokens around."""
    if isinstance(pair.served, str):
        return f"the server refuses it: {pair.served}"
    both = zip_longest(pair.trained, pair.served)
    place = next(number for number, (ours, theirs) in enumerate(both) if ours != theirs)
    around = slice(max(0, place - _AROUND), place + _AROUND)
    ours, theirs = list(pair.trained[around]), list(pair.served[around])
    return f"from token {place}: trained on {decode(ours)!r} {ours}, served {decode(theirs)!r} {theirs}"


def compare_likelihoods(answers: Sequence[AnswerLogps], *, dtype: Dtype, skipped: int) -> Likelihoods:
    """Compare log-probabilities token by token."""
    differences = [
        abs(ours - theirs) for answer in answers for ours, theirs in zip(answer.trained, answer.served, strict=True)
    ]
    finite = [difference for difference in differences if isfinite(difference)]
    mean_limit, max_limit = LIMITS[dtype]
    return Likelihoods(
        answers=len(answers),
        tokens=len(differences),
        skipped=skipped,
        not_finite=len(differences) - len(finite),
        mean_difference=sum(finite) / len(finite) if finite else None,
        max_difference=max(finite, default=None),
        mean_limit=mean_limit,
        max_limit=max_limit,
    )


def failures(prompts: Prompts, likelihoods: Likelihoods, stops: Stops) -> tuple[str, ...]:
    """Why a server does not give the model that was trained, in sentences; none where it does."""
    found: list[str] = []
    for what, part, number in (
        ("prompts", prompts, prompts.compared),
        ("answers", likelihoods, likelihoods.tokens),
    ):
        if not number:
            found.append(f"no {what} were compared ({part.skipped} are longer than the server takes)")
    if prompts.mismatches:
        found.append(
            f"{prompts.mismatches} of {prompts.compared} prompts have other token ids under the server's chat template "
            f"than under the training's; the first {prompts.first}"
        )
    if likelihoods.not_finite:
        found.append(f"{likelihoods.not_finite} of {likelihoods.tokens} log-probabilities are no finite numbers")
    for name, value, limit in (
        ("at most", likelihoods.max_difference, likelihoods.max_limit),
        ("on average", likelihoods.mean_difference, likelihoods.mean_limit),
    ):
        if value is not None and limit is not None and value > limit:
            found.append(
                f"log-probabilities are {value:.3g} nats a token {name} from the trainer's, allowed are {limit:g}: the "
                "server computes with other weights, another dtype or another formula"
            )
    if stops.end_of_turn not in stops.listed:
        found.append(f"generation_config.json does not stop at the end of a turn, token {stops.end_of_turn}")
    for number in sorted({stops.end_of_turn, *stops.listed} - {*stops.stopping}):
        found.append(f"the server goes on after the stop token {number}")
    if stops.ordinary_stops:
        found.append(f"the server stops after token {stops.ordinary}, which ends no answer")
    return tuple(found)
