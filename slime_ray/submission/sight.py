"""What the cluster sees: files that a recipe names are looked for there before anything is submitted."""

from __future__ import annotations

import json
import os
import shlex
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from slime_ray.errors import ClusterError, ConfigError
from slime_ray.storage import is_url
from slime_ray.submission.connection import Connection
from slime_ray.submission.work import Setting, Work

# What a job prints that looks: which of some files are there, in which of some folders could be written.
_LOOK = """
import json, os, sys, tempfile
def writable(folder):
    if os.path.isfile(folder):
        return os.access(folder, os.W_OK)
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return folder != ""
asked = json.loads(sys.argv[1])
seen = [name for name in asked["reads"] if os.path.exists(os.path.expanduser(name))]
seen += [name for name in asked["writes"] if writable(os.path.expanduser(name))]
print("seen:" + json.dumps(seen))
"""
_LOOK_S = 0.2
_LONGEST_S = 60.0
_BUILT_IN = ("bundled",)
# A hub name seldom ends so.
_SUFFIXES = (".json", ".jsonl", ".gz", ".parquet", ".jinja", ".csv")


def look(work: Work, connection: Connection) -> list[Setting]:
    """See that what a job reads and writes can be read and written where it runs.

    A relative name is a file of this machine, wherever the job runs. An absolute one is looked for on the cluster by a
    job of some seconds; a URL, a run or a hub name is left to the job.

    Returns:
        What is on this machine alone and can be sent along: relative names of files and folders that are here.

    Raises:
        ConfigError: a folder to write into is relative, or a file is neither here nor there.
        ClusterError: the cluster did not say in time.
    """
    for setting in work.named("writes"):
        _refuse_relative(setting, "the job's own folder on the cluster is removed with it")
    for setting in work.named("secret"):
        _refuse_relative(setting, "a file of keys is not sent along", folder=False)
    reads = [setting for setting in work.named("reads") if _is_file(setting.value)]
    there = [setting for setting in (*reads, *work.named("secret")) if _is_absolute(setting.value)]
    into = [setting for setting in work.named("writes") if _is_absolute(setting.value)]
    seen = _ask(connection, there, into) if there or into else set()
    for setting in there:
        if setting.value not in seen:
            _refuse_unseen(setting)
    for setting in into:
        if setting.value not in seen:
            raise ConfigError(
                f"{setting.key} = {setting.value!r}: cannot be written on the cluster's head node; name a folder that "
                "all nodes see, or a URL such as s3://bucket/runs"
            )
    sendable = [setting for setting in reads if not _is_absolute(setting.value)]
    for setting in sendable:
        if not Path(setting.value).exists():
            raise ConfigError(f"{setting.key} = {setting.value!r}: no such file here; name one, or a URL")
        # Also one that leaves this folder and comes back: its name would lead elsewhere in the job.
        if os.path.normpath(setting.value).startswith(".."):
            raise ConfigError(
                f"{setting.key} = {setting.value!r}: lies outside of {Path.cwd()}, from which files are sent; submit "
                "from a folder above it"
            )
    return sendable


def refuse_unsent(sendable: Sequence[Setting]) -> None:
    """Say what the cluster cannot see, where it was not asked to be sent.

    Raises:
        ConfigError: there is such a file.
    """
    if sendable:
        named = ", ".join(f"{setting.key} = {setting.value!r}" for setting in sendable)
        raise ConfigError(
            f"{named}: on this machine alone, where the cluster cannot read it; --upload sends it along (small files), "
            "or copy it to where the cluster reads it, such as s3://..., and name that"
        )


def _refuse_relative(setting: Setting, reason: str, *, folder: bool = True) -> None:
    if not is_url(setting.value) and not _is_absolute(setting.value):
        what = (
            "a URL such as s3://bucket/..., or an absolute folder that all nodes see" if folder else "an absolute path"
        )
        raise ConfigError(f"{setting.key} = {setting.value!r}: {reason}; set {setting.key} to {what}")


def _refuse_unseen(setting: Setting) -> None:
    path = Path(setting.value).expanduser()
    if not path.exists():
        raise ConfigError(f"{setting.key} = {setting.value!r}: neither on the cluster nor here; name a file, or a URL")
    relative = f" as {path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else " by a relative path"
    raise ConfigError(
        f"{setting.key} = {setting.value!r}: on this machine, but not on the cluster; name it{relative} and send it "
        "along with --upload (small files), or copy it to where the cluster reads it, such as s3://..., and name that"
    )


def _is_file(value: str) -> bool:
    """Whether a setting names a file or folder of some machine, not a run, URL, hub name or what is built in."""
    if is_url(value) or value.startswith("run:") or value in _BUILT_IN:
        return False
    return _is_absolute(value) or Path(value).exists() or Path(value).suffix in _SUFFIXES


def _is_absolute(value: str) -> bool:
    return value.startswith(("/", "~"))


def _ask(connection: Connection, reads: Sequence[Setting], writes: Sequence[Setting]) -> set[str]:
    """Which names the head node, where jobs begin, finds."""
    asked = json.dumps({"reads": [each.value for each in reads], "writes": [each.value for each in writes]})
    name = f"look-{uuid.uuid4().hex[:8]}"
    connection.submit_job(entrypoint=f"python -c {shlex.quote(_LOOK)} {shlex.quote(asked)}", submission_id=name)
    until = time.monotonic() + _LONGEST_S
    while not (job := connection.job(name)).status.is_terminal():
        if time.monotonic() > until:
            connection.stop_job(name)
            raise ClusterError(
                f"{connection.address}: a job that looks for files did not end within {_LONGEST_S:.0f} s "
                f"({job.status.value.lower()}); look at what the cluster is busy with: {connection.address}/#/jobs"
            )
        time.sleep(_LOOK_S)
    logs = connection.get_job_logs(name)
    line = next((line for line in logs.splitlines() if line.startswith("seen:")), None)
    if line is None:
        reason = (job.message or logs or "no word").strip().splitlines()[-1]
        raise ClusterError(f"{connection.address}: a job that looks for files failed there: {reason}")
    return set(json.loads(line.removeprefix("seen:")))
