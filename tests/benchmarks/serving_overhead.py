"""What our ingress and gateway cost, next to Ray's plain `build_openai_app` before the very same vLLM engine.

    python -m tests.benchmarks.serving_overhead [--rounds 5] [--source FOLDER]

One cluster, one proxy, one engine, two applications: ours at / with a key, limits, metrics and a request log in a file,
Ray's at /plain, whose engine is a handle to ours. A client in a process of its own loads them in turn: eight streams at
once, and short answers in one piece between them. A round is many short turns, and each side goes first in every other
pair of them; its figures are medians, which other work on the machine disturbs least. Ratios above 1 are in our favour;
the lower end of their 95 % interval over the rounds (Student's t, on logarithms) is to be 0.95 at least. CPU time is
that of a process, less what it takes while the other side is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import psutil
from scipy.special import stdtrit

MODEL = "base"
PATH = "/v1/chat/completions"
OURS, PLAIN = "ours", "plain"
AT_ONCE = 8
STREAMED, SHORT = 128, 8  # tokens of an answer
PAIRS = 16  # of turns in a round
REQUESTS = 1  # streams, and as many short answers, of each of the clients in a turn
# An ingress's process, as Ray calls it.
_PROCESSES = {OURS: "ray::ServeReplica:slime-ray:Ingress", PLAIN: "ray::ServeReplica:plain:OpenAiIngress"}
_REPEATS = 2_000


@dataclass(slots=True)
class Side:
    """One side's turns of one round.

    Attributes:
        speeds, waits_s: of each turn: tokens a second, and the mean time to the first piece of a stream.
        cpu_s, idle_cpu_s: of its ingress, in its own turns and in the other's, which took idle_s.
    """

    speeds: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    requests: int = 0
    streams: int = 0
    pieces: int = 0
    cpu_s: float = 0.0
    idle_cpu_s: float = 0.0
    idle_s: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second, all answers together."""
        return statistics.median(self.speeds)

    @property
    def wait_ms(self) -> float:
        """Time to the first token of a stream."""
        return 1e3 * statistics.median(self.waits_s)

    @property
    def cpu_ms(self) -> float:
        """Of its ingress, a request."""
        return 1e3 * (self.cpu_s - self.idle_cpu_s / self.idle_s * self.seconds) / self.requests


async def load(*, url: str, key: str, requests: int) -> dict[str, Any]:
    """Load one side; an answer that is not whole ends the benchmark."""
    found: dict[str, Any] = {"tokens": 0, "requests": 0, "pieces": 0, "first_token_s": []}
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def ask(number: int, *, stream: bool) -> bytes:
            tokens = STREAMED if stream else SHORT
            question = {"role": "user", "content": f"What is {number} plus {7 * number % 11}?"}
            body = {"model": MODEL, "messages": [question], "max_tokens": tokens, "temperature": 0.0}
            started, answer = time.perf_counter(), b""
            async with session.post(url, json=body | {"ignore_eos": True, "stream": stream}) as response:
                assert response.status == 200, await response.text()
                async for piece in response.content.iter_any():
                    if stream:
                        found["pieces"] += 1
                        if not answer:
                            found["first_token_s"].append(time.perf_counter() - started)
                    answer += piece
            found["requests"] += 1
            found["tokens"] += tokens
            return answer

        async def client(first: int) -> None:
            for number in range(first, AT_ONCE * requests, AT_ONCE):
                for stream in (True, False) if number % 2 else (False, True):  # so they do not go in step
                    answer = await ask(number, stream=stream)
                    if stream:
                        assert b'"finish_reason":"length"' in answer, answer
                        assert answer.endswith(b"data: [DONE]\n\n"), answer
                    else:
                        assert json.loads(answer)["usage"]["completion_tokens"] == SHORT, answer

        started = time.perf_counter()
        await asyncio.gather(*map(client, range(AT_ONCE)))
        found["seconds"] = time.perf_counter() - started
    return found


@contextmanager
def loading() -> Iterator[Callable[..., dict[str, Any]]]:
    """`load`, in a process of its own that lasts."""
    code = (
        "import asyncio, json, sys\nfrom tests.benchmarks.serving_overhead import load\n"
        "for line in sys.stdin: print(json.dumps(asyncio.run(load(**json.loads(line)))), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        into, out = process.stdin, process.stdout
        assert into is not None
        assert out is not None

        def ask(**given: Any) -> dict[str, Any]:
            print(json.dumps(given), file=into, flush=True)
            line = out.readline()
            if not line:
                raise SystemExit("error: the client ended; its words are above")
            return json.loads(line)

        yield ask
        into.close()


@contextmanager
def served(folder: Path, source: Path) -> Iterator[tuple[dict[str, str], str]]:
    """The sides' URLs, and the key."""
    from ray import serve
    from ray.llm._internal.serve.core.ingress import builder
    from ray.serve.llm import LLMConfig, ModelLoadingConfig, build_openai_app

    from slime_ray.config.serving import KeysConfig, RequestLogConfig, ServedModelConfig, ServingRecipe
    from slime_ray.serving.app import NAME
    from slime_ray.serving.endpoint import endpoint
    from slime_ray.serving.gateway.keys import add_key

    key = add_key(folder / "keys.json", "benchmark")
    recipe = ServingRecipe(
        port=0,
        models={MODEL: ServedModelConfig(source=str(source), cpus=0.5, kv_cache_gb=0.2, max_model_len=512)},
        keys=KeysConfig(file=str(folder / "keys.json")),
        log=RequestLogConfig(file=str(folder / "requests.jsonl")),
        drain_seconds=1.0,
    )
    with endpoint(recipe, say=print) as running:
        engine = serve.get_deployment_handle(f"Engine:{MODEL}", app_name=NAME)
        config = LLMConfig(model_loading_config=ModelLoadingConfig(model_id=MODEL, model_source=str(source)))
        options = {"autoscaling_config": None, "num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
        # All of Ray's but the engine, which is there.
        with patch.object(builder, "build_llm_deployment", lambda config: engine):
            plain = build_openai_app({"llm_configs": [config], "ingress_deployment_config": options})
        serve.run(plain, name=PLAIN, route_prefix=f"/{PLAIN}")
        root = running.base_url.removesuffix("/v1")
        yield {OURS: f"{root}{PATH}", PLAIN: f"{root}/{PLAIN}{PATH}"}, key


def measured(rounds: int, urls: Mapping[str, str], key: str) -> list[dict[str, Side]]:
    """Both sides of each round."""
    processes = {
        name: next(each for each in psutil.Process().children(recursive=True) if each.cmdline()[0].startswith(title))
        for name, title in _PROCESSES.items()
    }
    done = []
    with loading() as ask:
        for name in (OURS, PLAIN) * 2:
            ask(url=urls[name], key=key, requests=1)
        for number in range(rounds):
            sides = {OURS: Side(), PLAIN: Side()}
            for pair in range(PAIRS):
                for name in (OURS, PLAIN)[:: -1 if (number + pair) % 2 else 1]:
                    before = {each: sum(process.cpu_times()[:2]) for each, process in processes.items()}
                    found = ask(url=urls[name], key=key, requests=REQUESTS)
                    for each, process in processes.items():
                        _count(sides[each], found, sum(process.cpu_times()[:2]) - before[each], loaded=each == name)
            done.append(sides)
            said = (f"{name} {side.speed:.0f} tokens/s, {side.wait_ms:.1f} ms" for name, side in sides.items())
            print(f"round {number + 1}: {'; '.join(said)}", flush=True)
    return done


def _count(side: Side, found: Mapping[str, Any], cpu_s: float, *, loaded: bool) -> None:
    if not loaded:
        side.idle_cpu_s += cpu_s
        side.idle_s += found["seconds"]
        return
    side.cpu_s += cpu_s
    side.seconds += found["seconds"]
    side.speeds.append(found["tokens"] / found["seconds"])
    side.requests += found["requests"]
    side.pieces += found["pieces"]
    side.streams += len(found["first_token_s"])
    side.waits_s.append(statistics.mean(found["first_token_s"]))


def own_cost(folder: Path, key: str) -> tuple[float, float]:
    """CPU time of the gateway by itself, around an app that only sends: ms a request, us a piece of a stream."""
    from slime_ray.config.serving import KeysConfig, RequestLogConfig, ServedModelConfig, ServingRecipe
    from slime_ray.serving.gateway.keys import Keys
    from slime_ray.serving.gateway.stack import gateway

    recipe = ServingRecipe(
        models={MODEL: ServedModelConfig(source="none")},
        keys=KeysConfig(file=str(folder / "keys.json")),
        log=RequestLogConfig(file=str(folder / "own.jsonl")),
    )
    question = {"model": MODEL, "messages": [{"role": "user", "content": "What is 3 plus 4? " * 20}]}
    headers = [(b"authorization", b"Bearer " + key.encode()), (b"content-type", b"application/json")]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(scope["pieces"]):
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def seconds(app: Any, pieces: int) -> float:
        body = iter([json.dumps(question).encode()] * _REPEATS)
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": next(body), "more_body": False}

        async def send(message: Any) -> None:
            pass

        started = time.process_time()
        for _ in range(_REPEATS):
            asked = False
            await app(
                {"type": "http", "method": "POST", "path": PATH, "headers": headers, "pieces": pieces}, receive, send
            )
        return (time.process_time() - started) / _REPEATS

    def least(pieces: int) -> float:
        full = gateway(answer, recipe=recipe, keys=Keys.load(recipe.keys), proxied=True)
        return min(asyncio.run(seconds(full, pieces)) - asyncio.run(seconds(answer, pieces)) for _ in range(5))

    one, many = least(1), least(101)
    return 1e3 * one, 1e6 * (many - one) / 100


def between(ratios: Sequence[float]) -> str:
    """The 95 % interval of a ratio."""
    logs = [math.log(ratio) for ratio in ratios]
    reach = float(stdtrit(len(logs) - 1, 0.975)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(statistics.mean(logs) - reach):.3f} to {math.exp(statistics.mean(logs) + reach):.3f}"


def table(rounds: Sequence[Mapping[str, Side]]) -> str:
    """A row a round, and what they say together."""
    speeds = [sides[OURS].speed / sides[PLAIN].speed for sides in rounds]
    waits = [sides[PLAIN].wait_ms / sides[OURS].wait_ms for sides in rounds]
    cpu = {name: statistics.median(sides[name].cpu_ms for sides in rounds) for name in (OURS, PLAIN)}
    lines = [
        "| | tokens/s: ours | Ray's | ratio | first token, ms: ours | Ray's | ratio | CPU ms a request: ours | Ray's |",
        "| --- |" + 8 * " ---: |",
    ]
    for number, (sides, speed, wait) in enumerate(zip(rounds, speeds, waits, strict=True), start=1):
        ours, plain = sides[OURS], sides[PLAIN]
        lines.append(
            f"| round {number} | {ours.speed:,.0f} | {plain.speed:,.0f} | {speed:.3f} | {ours.wait_ms:.1f} | "
            f"{plain.wait_ms:.1f} | {wait:.3f} | {ours.cpu_ms:.2f} | {plain.cpu_ms:.2f} |"
        )
    middle = (
        f"| {statistics.median(speeds):.3f} | | | {statistics.median(waits):.3f} | {cpu[OURS]:.2f} | {cpu[PLAIN]:.2f} |"
    )
    return "\n".join([*lines, f"| median | | {middle}", f"| 95 % | | | {between(speeds)} | | | {between(waits)} | | |"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=Path, help="a Hugging Face folder; default: the quickstart's base model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = given.source or base_model(folder)
        with served(folder, source) as (urls, key):
            rounds = measured(given.rounds, urls, key)
        request_ms, piece_us = own_cost(folder, key)
    print(table(rounds))
    pieces = statistics.mean(side.pieces / side.streams for sides in rounds for side in sides.values())
    print(f"\n{AT_ONCE} clients; {STREAMED} tokens a stream, in {pieces:.0f} pieces, and {SHORT} in a short answer.")
    print(f"The gateway by itself: {request_ms:.2f} ms of CPU a request and {piece_us:.1f} us a piece of a stream.")


def base_model(folder: Path) -> Path:
    """The quickstart's, never trained: the smaller a model, the more all else counts."""
    from slime_ray.quickstart.models import write_model
    from slime_ray.quickstart.rows import write_parts

    parts = write_parts(folder / "data", sft=300, preference=8, validation=8, test=8)
    return write_model(folder / "model", str(parts["sft"]), seed=0)


if __name__ == "__main__":
    main()
