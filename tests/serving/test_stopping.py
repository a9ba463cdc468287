"""What is left of an endpoint: no process, no key in a log, nothing of its insides in a response. Last by its name."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import openai
import psutil
import pytest

from tests.served import Serving

_STOPS_S = 60
_ROOT = Path(__file__).parents[2]
# What an exception, an object or a file leaves in a message.
_INSIDES = re.compile(
    rb"Traceback|\bFile \"|\b[A-Z]\w*(?:Error|Exception)\b|<[\w.]+ object|\bat 0x|site-packages|/tmp/|\.py\b"
)


@pytest.fixture(scope="module")
def stopped(serving: Serving, client: openai.OpenAI) -> tuple[Serving, Path, list[psutil.Process]]:
    """The endpoint after SIGTERM, the folder of Ray's logs, and all processes that there were."""
    prompt = "a prompt of which no log may tell"
    asked = {"model": client.models.list().data[0].id, "prompt": prompt, "max_tokens": 2}
    client.completions.create(**asked)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{**asked, "temperature": -1})
    session, processes = serving.session(), serving.processes()
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(_STOPS_S) == 0
    return serving, session, processes


Stopped = tuple[Serving, Path, list[psutil.Process]]


def test_no_process_is_left(stopped: Stopped) -> None:
    _, _, processes = stopped
    assert len(processes) > 5
    _, left = psutil.wait_procs(processes, timeout=10)
    assert [process.cmdline() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def test_it_said_what_it_did(stopped: Stopped) -> None:
    printed = stopped[0].printed.decode()
    assert "has no certificate" in printed
    assert "stopping: running answers have 5 s" in printed
    assert "Traceback" not in printed


def test_every_request_has_a_line_in_the_log(stopped: Stopped) -> None:
    serving, _, _ = stopped
    lines = serving.logged()
    logged = {line["request_id"] for line in lines}
    assert len(serving.witness.asked) > 1
    assert serving.witness.asked - logged == set()
    assert {line["key"] for line in lines} <= {None, *serving.keys}


def test_no_log_holds_a_key_or_a_prompt(stopped: Stopped) -> None:
    serving, session, _ = stopped
    files = [path for folder in (session, serving.folder) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("replica_") for path in files)
    secrets = [*(key.encode() for key in serving.keys.values()), b"of which no log may tell"]
    found = [(path, secret[:12]) for path in files for secret in secrets if secret in path.read_bytes()]
    assert found == []


def test_no_response_holds_a_key_or_anything_inside(stopped: Stopped) -> None:
    serving, _, _ = stopped
    assert len(serving.witness.bodies) > 2
    hidden = [*serving.keys.values(), str(serving.folder), str(_ROOT), sys.prefix]
    for body in serving.witness.bodies:
        assert [secret for secret in hidden if secret.encode() in body] == []
        assert not (found := _INSIDES.search(body)), f"{found} in {body!r}"
