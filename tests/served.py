"""An endpoint in tests: a tiny trained run served as a user does it, and a witness of what goes to and fro."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch

from slime_ray.overrides import load_recipe
from slime_ray.quickstart.models import CHAT_TEMPLATE, make_llama, make_tokenizer
from slime_ray.serving.gateway.keys import add_key
from slime_ray.training.fit import train
from tests.command_line import COMMAND
from tests.conftest import preference_rows, recipe_writer, write_rows

MODEL = "tiny/aligned"
PARENT = "tiny/parent"
# One is for the tests of a revoked key, and two that hold places leave the others alone.
KEYS = ("first", "second", "revoked", "holder", "crowd", "fuzz")
VARIABLE = "variable"  # the key that the environment brings
CONTEXT = 384
VOCABULARY = 360
LIMITS: dict[str, Any] = {
    "concurrent": 8,
    "concurrent_per_key": 6,
    "body_bytes": 2**16,
    "max_tokens": 256,
    "choices": 4,
    "body_seconds": 4.0,
    "request_seconds": 20.0,
}
_STARTS_S = 240.0
_STOPS_S = 60.0

# Tools stand in the system turn; a call is written as llama's parser reads it.
_TOOLS = (
    "{% if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool['function']['name'] + ' ' }}{% endfor %}"
    "{{ '<|end|>' }}{% endif %}"
)
TEMPLATE = CHAT_TEMPLATE.replace("{% for message", _TOOLS + "{% for message", 1).replace(
    "message['content']", "(message['content'] or '')"
)


@dataclass
class Witness:
    """What went to the endpoint and came back, whoever asked.

    Attributes:
        bodies: of responses, with their heads.
        asked: ids that requests had which an app has to have seen.
    """

    bodies: list[bytes] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def transport(self) -> httpx2.BaseTransport:
        """For a client of httpx2 or openai."""
        return _Transport(self)

    def async_transport(self) -> httpx2.AsyncBaseTransport:
        """For an asynchronous client."""
        return _AsyncTransport(self)

    def note(self, request: httpx2.Request, response: httpx2.Response) -> None:
        """Keep the head of a response, and the id that its request had."""
        self.bodies.append(b"\n".join(name + b": " + value for name, value in response.headers.raw))
        if request.url.path != "/health":  # probes are not logged
            self.asked.add(response.headers["x-request-id"])


class _Transport(httpx2.HTTPTransport):
    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        self._witness.note(request, response)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Seen(response.stream, self._witness)
        return response


class _AsyncTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        self._witness.note(request, response)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _AsyncSeen(response.stream, self._witness)
        return response


@dataclass
class _Seen(httpx2.SyncByteStream):
    stream: httpx2.SyncByteStream
    witness: Witness

    def __iter__(self) -> Iterator[bytes]:
        for part in self.stream:
            self.witness.bodies.append(part)
            yield part

    def close(self) -> None:
        self.stream.close()


@dataclass
class _AsyncSeen(httpx2.AsyncByteStream):
    stream: httpx2.AsyncByteStream
    witness: Witness

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self.stream:
            self.witness.bodies.append(part)
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()


@dataclass
class Serving:
    """An endpoint that runs.

    Attributes:
        folder: everything that it reads and writes, but Ray's own logs.
        keys: by name.
        process: the command.
        port: of the endpoint.
        lineage: of the model, as its card has to show it.
        witness: of its requests.
    """

    folder: Path
    keys: dict[str, str]
    process: psutil.Process
    port: int
    lineage: dict[str, Any]
    witness: Witness = field(default_factory=Witness)

    def __post_init__(self) -> None:
        self._asking = self.client()  # kept: to make one takes as long as many a request

    @property
    def root(self) -> str:
        """Its address without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys_file(self) -> Path:
        """Names and hashes of the keys."""
        return self.folder / "keys.json"

    @property
    def printed(self) -> bytes:
        """What the command has printed."""
        return (self.folder / "printed.txt").read_bytes()

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the request log, which is there from the first one on."""
        log = self.folder / "requests.jsonl"
        return [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []

    def lines_with(self, name: str, value: str, *, count: int, after: int = 0) -> list[dict[str, Any]]:
        """So many lines of the log, without the first ones; a line is written just after its answer's end."""
        deadline = time.monotonic() + 5
        while len(found := [line for line in self.logged()[after:] if line[name] == value]) < count:
            assert time.monotonic() < deadline, f"{len(found)} lines with {name} = {value}, not {count}"
            time.sleep(0.05)
        assert len(found) == count
        return found

    def line_of(self, request_id: str) -> dict[str, Any]:
        """A request's line."""
        (line,) = self.lines_with("request_id", request_id, count=1)
        return line

    def headers(self, key: str = "first") -> dict[str, str]:
        """What a request with a key has."""
        return {"authorization": f"Bearer {self.keys[key]}"}

    def client(self, key: str | None = "first") -> httpx2.Client:
        """A plain client with a key."""
        headers = {} if key is None else self.headers(key)
        return httpx2.Client(base_url=self.root, headers=headers, transport=self.witness.transport(), timeout=60)

    def processes(self) -> list[psutil.Process]:
        """The command and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def engine(self) -> psutil.Process:
        """The process that computes."""
        (found,) = [process for process in self.processes() if process.name().startswith("VLLM::EngineCor")]
        return found

    def session(self) -> Path:
        """Ray's folder of this endpoint."""
        marked = "--session-dir="
        words = [word for process in self.processes() for word in process.cmdline() if word.startswith(marked)]
        return Path(words[0].removeprefix(marked))

    def in_flight(self) -> float:
        """How many requests run now, as the metrics say."""
        page = self._asking.get("/metrics").raise_for_status().text
        lines = [line for line in page.splitlines() if line.startswith("slime_ray_requests_in_flight{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def wait_in_flight(self, count: int, *, timeout_s: float = 15) -> None:
        """Look at the metrics until so many requests run."""
        deadline = time.monotonic() + timeout_s
        while (found := self.in_flight()) != count:
            assert time.monotonic() < deadline, f"{found} requests run, not {count}"
            time.sleep(0.05)


def write_checkpoint(folder: Path) -> Path:
    """A Llama of 2 layers with 2 heads of 32, peaked like a trained one, and a tokenizer whose template has tools."""
    texts = [row["prompt"] for row in preference_rows(50, seed=0)] + ['{"city": "Oslo", "name": ["a"]}'] * 20
    tokenizer = make_tokenizer(texts, vocabulary=VOCABULARY - 1)
    tokenizer.add_tokens("<|python_tag|>", special_tokens=True)  # without it llama's calls cannot be read
    tokenizer.chat_template = TEMPLATE
    model = make_llama(tokenizer, layers=2, hidden=64, heads=2, tied=False, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def train_aligned(folder: Path) -> dict[str, Any]:
    """Train a parent and the run on top of it for one step each, in folder/runs; what its lineage has to say."""
    data = write_rows(folder / "pairs.jsonl", preference_rows(16, seed=0))
    write = recipe_writer(folder, model=write_checkpoint(folder / "base"), data=data)
    settings = {"model.dtype": "float32", "training.max_steps": 1}
    parent = train(load_recipe(write({**settings, "name": PARENT}, file="parent.toml")))
    child = {**settings, "name": MODEL, "model.name": f"run:{PARENT}"}
    run = train(load_recipe(write(child, file="child.toml")))
    manifest = json.loads((run.folder / "manifest.json").read_bytes())
    return {"name": run.name, "parent": parent.name, "data": manifest["data"]}


def write_serving(folder: Path) -> Path:
    """The recipe of the endpoint."""
    lines = [
        f"runs_dir = {json.dumps(str(folder / 'runs'))}",
        "port = 0",
        "drain_seconds = 5",
        "[limits]",
        *(f"{key} = {json.dumps(value)}" for key, value in LIMITS.items()),
        "[keys]",
        f"file = {json.dumps(str(folder / 'keys.json'))}",
        "[log]",
        f"file = {json.dumps(str(folder / 'requests.jsonl'))}",
        f'[models."{MODEL}"]',
        f'source = "run:{MODEL}"',
        "cpus = 1",
        "kv_cache_gb = 0.25",
        f"max_model_len = {CONTEXT}",
        # Weights at random would go on with blanks between the tokens of JSON.
        'engine.structured_outputs_config = { backend = "xgrammar", disable_any_whitespace = true }',
    ]
    path = folder / "serving.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def running(folder: Path) -> Iterator[Serving]:
    """Inside, an endpoint answers; what is left of it then is stopped."""
    lineage = train_aligned(folder)
    keys = {name: add_key(folder / "keys.json", name) for name in KEYS}
    keys[VARIABLE] = "sk-of-the-environment-7319"
    log = folder / "printed.txt"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["SLIME_RAY_API_KEYS"] = f"{VARIABLE}={keys[VARIABLE]}"
    environment["RAY_ADDRESS"] = "local"  # no cluster of somebody else's, nor one that was killed and is still named
    with log.open("wb") as output:
        command = [sys.executable, "-c", COMMAND, "serve", str(write_serving(folder))]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    started = psutil.Process(process.pid)
    try:
        yield Serving(folder, keys, started, _port(process, log), lineage)
    finally:
        end(process.pid)
        process.wait(_STOPS_S)


def end(pid: int) -> None:
    """Stop a process and all that it started, if they still run."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    if family[0].status() != psutil.STATUS_ZOMBIE:
        family[0].send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=_STOPS_S)
    for process in left:
        process.kill()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line with the address."""
    deadline = time.monotonic() + _STARTS_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("http://127.0.0.1:"):
                return int(line.removeprefix("http://127.0.0.1:").removesuffix("/v1"))
        time.sleep(0.2)
    raise RuntimeError(f"the endpoint did not start:\n{log.read_text(errors='replace')}")
