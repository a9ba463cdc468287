"""Subcommands that have a Ray cluster do the work: submit, and what became of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from slime_ray.cli.terms import Overrides, print_wide
from slime_ray.errors import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

app = typer.Typer()

Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://10.0.0.1:8265.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
HERE = "http://127.0.0.1:8265"


@app.command()
def submit(
    kind: Annotated[str, typer.Argument(metavar="train|tune|evaluate|pipeline", show_default=False)],
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", show_default=False)],
    overrides: Overrides = None,
    address: Address = HERE,
    upload: Annotated[bool, typer.Option("--upload", help="Send small files along that are here alone.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Once more, though it is done.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show its log and end as it ends.")] = True,
) -> None:
    """Have a Ray cluster do what `slime-ray KIND RECIPE` does here; the same line again attaches, or goes on."""
    from slime_ray.submission.work import KINDS, Work

    if kind not in KINDS:
        raise ConfigError(f"submit {kind}: expected one of {', '.join(KINDS)}")
    work = Work.of(kind, recipe, overrides or [])
    # Loads ray: after the recipes were found to be some.
    from slime_ray.submission import attempts, package, sight
    from slime_ray.submission.connection import Connection

    package.checkout()
    connection = Connection(address)
    sendable = sight.look(work, connection)
    if not upload:
        sight.refuse_unsent(sendable)
    sent = sorted({setting.value for setting in sendable})
    name = work.submission_id(package.content(sent))
    attempt = attempts.submit(connection, work, submission_id=name, sent=sent, again=again)
    _say(_begun(attempt.id, attempt.found))
    if not wait:
        print(attempt.id)
        return
    _end(address, attempt.id)


@app.command()
def jobs(address: Address = HERE) -> None:
    """List what was submitted to a cluster."""
    from slime_ray.submission.attempts import OURS
    from slime_ray.submission.connection import Connection

    found = [job for job in Connection(address).jobs() if OURS in (job.metadata or {})]
    if not found:
        _say(f"{address}: nothing was submitted since this cluster was started")
        return
    table = Table("job", "recipe", "state", "exit code", "began", "took", box=None)
    for job in found:
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        recipe = (job.metadata or {}).get("recipe", "")
        table.add_row(job.submission_id, recipe, job.status.value.lower(), code, _time(job), _took(job))
    print_wide(table)


@app.command()
def logs(
    job: JobId,
    address: Address = HERE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it has ended, and end as it ends.")] = False,
) -> None:
    """Print a job's log."""
    from slime_ray.submission.connection import Connection
    from slime_ray.submission.following import write

    if follow:
        _end(address, job)
    connection = Connection(address)
    connection.job(job)
    write(connection.get_job_logs(job))


@app.command()
def stop(job: JobId, address: Address = HERE) -> None:
    """Have a job write a checkpoint and end."""
    from slime_ray.submission import following
    from slime_ray.submission.connection import Connection

    _say(following.ending(following.stop(Connection(address), job, say=_say)))


def _end(address: str, name: str) -> None:
    """Follow a job, and end as it ends."""
    from slime_ray.submission import following
    from slime_ray.submission.connection import Connection

    try:
        job = following.follow(Connection(address), name, show=following.write)
    except KeyboardInterrupt:
        _say(f"{name} goes on; come back with `slime-ray logs {name} --follow`, end it with `slime-ray stop {name}`")
        raise typer.Exit(130) from None
    _say(following.ending(job))
    raise typer.Exit(following.exit_code(job))


def _begun(name: str, found: JobDetails | None) -> str:
    if found is None:
        return f"{name}: submitted"
    if found.status.is_terminal():
        return f"{name}: done already, since {_clock(found.end_time)}; --again does it once more"
    return f"{name}: {found.status.value.lower()} already, since {_clock(found.start_time)}; attached"


def _time(job: JobDetails) -> str:
    return _clock(job.start_time)


def _took(job: JobDetails) -> str:
    end = job.end_time or int(datetime.now(UTC).timestamp() * 1000)
    return str(timedelta(seconds=(end - (job.start_time or end)) // 1000))


def _clock(milliseconds: int | None) -> str:
    return datetime.fromtimestamp((milliseconds or 0) / 1000).astimezone().isoformat(sep=" ", timespec="seconds")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
