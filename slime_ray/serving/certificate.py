"""What says that a server gives a run's model as it was trained: the same prompts, log-probabilities and stops."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from slime_ray.errors import RunError
from slime_ray.sealed import Sealed
from slime_ray.serving.comparison import (
    AnswerLogps,
    Dtype,
    Likelihoods,
    PromptIds,
    Prompts,
    Stops,
    compare_likelihoods,
    compare_prompts,
    failures,
)

FILE = "certificate.json"


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
    ends = {number: asked.stops_after(number) for number in {trained.end_of_turn, *trained.listed, ordinary}}
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
