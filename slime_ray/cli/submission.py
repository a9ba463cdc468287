"""Subcommands that have a Ray cluster do the work: submit, and what became of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from slime_ray.cli.terms import Overrides, print_wide
from slime_ray.errors import ConfigError

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
    """Have a Ray cluster do what `slime-ray KIND RECIPE` does here (then: jobs, logs ID, stop ID).

    The same line again attaches while it is queued, running or done, and goes on after a failure or a stop. Ctrl-C
    leaves the job running. It ends with the job's exit code.
    """
    from slime_ray.submission.work import KINDS, Work

    if kind not in KINDS:
        raise ConfigError(f"submit {kind}: expected one of {', '.join(KINDS)}")
    work = Work.of(kind, recipe, overrides or [])
    # Loads ray: after the recipes were found to be some.
    from slime_ray.submission import attempts, listing, package, sight
    from slime_ray.submission.connection import Connection

    package.checkout()
    connection = Connection(address)
    sendable = sight.look(work, connection)
    if not upload:
        sight.refuse_unsent(sendable)
    sent = sorted({setting.value for setting in sendable})
    name = work.submission_id(package.content(sent))
    attempt = attempts.submit(connection, work, submission_id=name, sent=sent, again=again)
    _say(listing.begun(attempt))
    if not wait:
        print(attempt.id)
        return
    _end(address, attempt.id)


@app.command(hidden=True)  # the list of commands has to fit one screen; submit names these three
def jobs(address: Address = HERE) -> None:
    """List what was submitted to a cluster."""
    from slime_ray.submission import listing
    from slime_ray.submission.connection import Connection

    table = listing.table(Connection(address).jobs())
    if table.row_count:
        print_wide(table)
    else:
        _say(f"{address}: nothing was submitted since this cluster was started")


@app.command(hidden=True)
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


@app.command(hidden=True)
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


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
