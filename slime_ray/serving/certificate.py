"""What says that a server gives a run's model as it was trained: the same prompts, log-probabilities and stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from slime_ray.errors import RunError
from slime_ray.sealed import Sealed

FILE = "certificate.json"

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


class Certificate(Sealed):
    """A comparison of a run's model with a server of it; kept in the run's folder as certificate.json.

    Attributes:
        passed: whether the server gives the model that was trained.
        reasons: why not, in sentences.
        run, hash: the run's name and hash.
        files: stands for the files of final/ that it is for: `json_hash` of the manifest's.
        model: what the server calls it.
        dtype: in which the server is said to compute.
        data: where the rows come from: data.eval, the held-out part of data.train, or data.train.
        server: how the server names itself, with vLLM's version; None where it does not.
        versions: of the trainer's packages.
        made: when, UTC, ISO 8601; for people.
    """

    passed: bool
    reasons: tuple[str, ...]
    run: str
    hash: str
    files: str
    model: str
    dtype: Dtype
    data: str
    prompts: Prompts
    likelihoods: Likelihoods
    stops: Stops
    server: str | None
    versions: dict[str, str]
    made: str


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


def certify(
    name: str,
    *,
    runs_dir: Path,
    base_url: str,
    model: str,
    pairs: int = 32,
    dtype: Dtype | None = None,
    api_key_env: str | None = None,
) -> Certificate:
    """Compare a finished run's model with a server of it, and keep the outcome in the run's folder.

    The trainer's side is computed on CPU, in the dtype that the weights were trained in: the server may hold the GPU.

    Args:
        name: run:NAME.
        runs_dir: the folder that keeps all runs.
        base_url: of an OpenAI-compatible server that is vLLM, up to /v1.
        model: what the server calls the model.
        pairs: rows to compare; fewer where there are not as many.
        dtype: in which the server computes; default: the one that the weights are stored in, float64 as float32.
        api_key_env: the environment variable with the server's key, None if it asks for none.

    Raises:
        ModelError: the name is not that of a run, or its model cannot be loaded.
        RunError: there is no such finished run, or final/ is not what the run wrote.
        DataError: the run's data are not there any more.
        EndpointError: the server cannot be asked.
    """
    # Reading a certificate loads none of these.
    from slime_ray.serving.asked import Asked
    from slime_ray.serving.trained import Trained

    trained = Trained.of(name, runs_dir=runs_dir, pairs=pairs)
    asked = Asked(base_url, model=model, api_key_env=api_key_env)
    room = asked.look()
    dtype = dtype or trained.dtype
    fitting = [sample for sample in trained.samples if room is None or len(sample.prompt_ids) < room]
    prompts = compare_prompts(
        [
            PromptIds(sample.prompt_ids, served, trained.today(sample))
            for sample, served in zip(fitting, asked.prompts([s.row for s in fitting]), strict=True)
        ],
        decode=trained.decode,
        skipped=len(trained.samples) - len(fitting),
    )
    sides = [side for sample in trained.samples for side in sample.sides]
    short = [side for side in sides if room is None or len(side.prompt) + len(side.answer) < room]
    likelihoods = compare_likelihoods(
        list(map(AnswerLogps, trained.logps(short), asked.logps(short))), dtype=dtype, skipped=len(sides) - len(short)
    )
    ordinary = trained.ordinary
    probe = trained.samples[0].row
    ends = {number: asked.stops_after(probe, number) for number in {trained.end_of_turn, *trained.listed, ordinary}}
    stops = Stops(
        end_of_turn=trained.end_of_turn,
        listed=trained.listed,
        stopping=tuple(sorted(number for number, ended in ends.items() if ended and number != ordinary)),
        ordinary=ordinary,
        ordinary_stops=ends[ordinary],
    )
    reasons = failures(prompts, likelihoods, stops)
    certificate = Certificate(
        passed=not reasons,
        reasons=reasons,
        run=trained.manifest.name,
        hash=trained.manifest.hash,
        files=trained.files,
        model=model,
        dtype=dtype,
        data=trained.data,
        prompts=prompts,
        likelihoods=likelihoods,
        stops=stops,
        server=asked.server,
        versions=trained.versions,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    certificate.write(runs_dir / trained.manifest.name / FILE)
    return certificate


def read_certificate(folder: Path, *, files_hash: str) -> Certificate | None:
    """The certificate in a run's folder; None where there is none, or one for other weights.

    Args:
        folder: of the run.
        files_hash: `json_hash` of its manifest's files.

    Raises:
        RunError: it was changed or damaged. Whether the checkpoint passed is then unknown, which is worse than not
            having been asked: somebody may have edited a failed one.
    """
    try:
        certificate = Certificate.read(folder / FILE)
    except RunError as error:
        found = str(error).rpartition("; ")[0]  # what Sealed advises would move the run away
        raise RunError(f"{found}; make it anew with `slime-ray certify`, or remove this file") from None
    return certificate if certificate is not None and certificate.files == files_hash else None


def certificate_lines(certificate: Certificate) -> list[str]:
    """A certificate as people read it, on one screen."""
    prompts, likelihoods, stops = certificate.prompts, certificate.likelihoods, certificate.stops
    same = f"{prompts.compared - prompts.mismatches} of {prompts.compared} have the training's token ids"
    same += f", {prompts.dated} of them but for today's date" if prompts.dated else ""
    most, mean = likelihoods.max_difference, likelihoods.mean_difference
    allowed = f"at most {likelihoods.max_limit:g}"
    allowed += f", {likelihoods.mean_limit:g} on average" if likelihoods.mean_limit is not None else ""
    numbers = "" if most is None or mean is None else f": {most:.2g} nats a token at most, {mean:.2g} on average"
    skipped = prompts.skipped + likelihoods.skipped
    return [
        f"{certificate.run} as {certificate.model} in {certificate.dtype}: "
        f"{'passed' if certificate.passed else 'FAILED'}",
        *(f"  because {reason}" for reason in certificate.reasons),
        f"  prompts            {same}",
        f"  log-probabilities  {likelihoods.answers:,} answers, {likelihoods.tokens:,} tokens{numbers} ({allowed})",
        f"  stops              listed {list(stops.listed)}, seen {list(stops.stopping)}, a turn ends with "
        f"{stops.end_of_turn}",
        *([f"  left out           {skipped} longer than the server takes"] if skipped else []),
        f"  rows of {certificate.data}; {certificate.server or 'a server without a version'}, "
        + ", ".join(f"{package} {version}" for package, version in certificate.versions.items())
        + f"; {certificate.made}",
    ]
