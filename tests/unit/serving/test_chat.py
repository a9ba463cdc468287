"""`slime-ray chat`: in a pipe, and in a real terminal, with a server that streams, fails and hangs."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slime_ray.cli.chatting import Chat
from slime_ray.errors import EndpointError
from tests.command_line import COMMAND, Answer, Run
from tests.openai_server import Body, OpenAIServer, Reply, error

_DEADLINE_S = 30.0


def stream(*pieces: str, end: str = "data: [DONE]\n\n") -> Reply:
    """An answer in OpenAI's form of server-sent events."""
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    events = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in deltas]
    return Reply("".join([*events, end]).encode(), headers={"Content-Type": "text/event-stream"})


def reply(body: Body, attempt: int) -> Reply:
    """The number of the question in its conversation, and who is asked; some are answered otherwise."""
    assert body["stream"]
    match body["messages"][-1]["content"]:
        case "refused":
            return error(400, "max_tokens is 9,\nat most 8.")
        case "broken":
            return stream("half", end='data: {"error": {"message": "the engine is gone"}}\n\n')
        case "cut":
            return Reply(stream("half").body, headers={"Content-Type": "text/event-stream"}, ending="cut")
        case "hanging":
            return Reply(b"", ending="hang")
        case "escaping":
            return stream("a\x1b[2Jb", "\x9b\u202ec", "\td[bold]")
        case _:
            asked = sum(message["role"] == "user" for message in body["messages"])
            return stream(f"answer {asked}", " of ", body["model"])


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer({"sft": None, "tiny/slime": None}, faults=reply) as server:
        yield server


@pytest.fixture
def pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`echo TEXT | slime-ray chat ...`."""

    def call(text: str, *arguments: object) -> Answer:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return run("chat", *arguments)

    return call


def last(server: OpenAIServer) -> Body:
    return server.served[-1].body


def test_a_pipe_gets_the_answer_alone(pipe: Run, server: OpenAIServer) -> None:
    found = pipe("two\nlines\n", "tiny/slime", "--url", server.url)
    assert (found.code, found.out, found.err) == (0, "answer 1 of tiny/slime\n", "")
    assert last(server) == {
        "model": "tiny/slime",
        "messages": [{"role": "user", "content": "two\nlines"}],
        "stream": True,
    }


def test_options_go_into_the_request(pipe: Run, server: OpenAIServer) -> None:
    options = ("--system", "Be brief.", "--temperature", "0", "--max-tokens", "7")
    assert pipe("hello", "sft", "--url", server.url, *options).code == 0
    body = last(server)
    assert (body["temperature"], body["max_tokens"]) == (0.0, 7)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("refused", "400: max_tokens is 9, at most 8."),
        ("broken", "the engine is gone"),
        ("cut", "error: "),
        (" \n", "standard input has no question"),
    ],
)
def test_a_pipe_ends_with_what_the_endpoint_says(pipe: Run, server: OpenAIServer, text: str, words: str) -> None:
    found = pipe(text, "sft", "--url", server.url)
    assert found.code == 2
    (line,) = found.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_model_is_named_where_there_are_several(pipe: Run, server: OpenAIServer) -> None:
    assert "serves 2 models: sft, tiny/slime; name one" in pipe("hello", "--url", server.url).err
    assert "has no model 'other'; it has sft, tiny/slime" in pipe("hello", "other", "--url", server.url).err
    with OpenAIServer({"only": None}, faults=reply) as one:
        assert pipe("hello", "--url", one.url).out == "answer 1 of only\n"


def test_nobody_there_is_one_line(pipe: Run) -> None:
    found = pipe("hello", "--url", "http://127.0.0.1:9/v1")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: http://127.0.0.1:9/v1: no answer; start one with slime-ray serve")
    with OpenAIServer({}, models_reply=Reply(b"<html>", headers={"Content-Type": "text/html"})) as other:
        assert "its /models lists none" in pipe("hello", "--url", other.url).err


def test_the_key_is_that_of_the_variable_and_is_never_shown(pipe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-this-endpoint")
    with OpenAIServer({"a": None}, key="sk-right", faults=reply) as server:
        found = pipe("hello", "a", "--url", server.url)
        assert "the key from SLIME_RAY_API_KEY" in found.err
        assert "not-for-this" not in found.err
        monkeypatch.setenv("SLIME_RAY_API_KEY", "sk-right")
        assert pipe("hello", "a", "--url", server.url).out == "answer 1 of a\n"
        monkeypatch.setenv("MINE", "sk-secret-one")
        assert "sk-secret-one" not in pipe("hello", "a", "--url", server.url, "--api-key-env", "MINE").err
        monkeypatch.setenv("MINE", "sk-\nbroken")
        found = pipe("hello", "a", "--url", server.url, "--api-key-env", "MINE")
        assert found.code == 2
        assert "broken" not in found.err


def opened(server: OpenAIServer, model: str = "sft") -> Chat:
    return Chat.open(
        model, url=server.url, system=None, temperature=None, max_tokens=None, api_key_env="SLIME_RAY_API_KEY"
    )


def test_an_endpoint_that_repeats_the_key_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_API_KEY", "sk-secret")
    with OpenAIServer({"a": None}, faults=lambda body, attempt: error(400, "no: Bearer sk-secret")) as server:
        chat = opened(server, "a")
        with pytest.raises(EndpointError, match=r"400: no: Bearer \[the key\]"):
            list(chat.ask("hello"))


def test_what_was_stopped_stays_and_what_failed_goes(server: OpenAIServer) -> None:
    chat = opened(server)
    pieces = chat.ask("one")
    assert next(pieces) == "answer 1"
    pieces.close()
    assert [message["content"] for message in chat.messages] == ["one", "answer 1"]
    for text in ("broken", "refused"):
        with pytest.raises(EndpointError, match=r"gone|at most"):
            list(chat.ask(text))
        assert [message["content"] for message in chat.messages] == ["one", "answer 1"]
    assert "".join(chat.ask("two")) == "answer 2 of sft"


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
            env=os.environ | {"TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"},
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, words: str) -> str:
        """What is shown up to some words."""
        found, end = b"", time.monotonic() + _DEADLINE_S
        while words.encode() not in found:
            assert time.monotonic() < end, f"{words!r} was not shown, but {found.decode()!r}"
            if select.select([self._ours], [], [], 0.2)[0]:
                found += os.read(self._ours, 4096)
        return found.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    made = Terminal(*arguments)
    try:
        yield made
    finally:
        made.close()


def test_a_conversation_in_a_terminal(server: OpenAIServer) -> None:
    with terminal("sft", "--url", server.url) as screen:
        screen.until("> ")
        for typed, shown in [
            ("hello\n", "answer 1 of sft"),
            ("again\n", "answer 2 of sft"),
            ("refused\n", "error: 400: max_tokens is 9, at most 8."),
            ("once more\n", "answer 3 of sft"),
            ("/model other\n", "has no model 'other'"),
            ("/model tiny/slime\n", "> "),
            ("and you\n", "answer 4 of tiny/slime"),
            ("/reset\n", "> "),
            ("anew\n", "answer 1 of tiny/slime"),
            ("/what\n", "/reset forgets"),
            ("escaping\n", "a[2Jbc        d[bold]"),
        ]:
            screen.type(typed)
            screen.until(shown)
        asked = len(server.served)
        screen.type("hanging\n")
        while len(server.served) == asked:
            time.sleep(0.01)
        screen.type("\x03")
        screen.until("[stopped]")
        screen.type("still there\n")
        screen.until("answer 3 of tiny/slime")
        screen.type("\x04")
        assert screen.process.wait(_DEADLINE_S) == 0
