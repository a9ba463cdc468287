"""What befalls an endpoint: lost processes, floods, bad clients, new and broken checkpoints, signals.

One cluster and one endpoint for all, in this order: each test leaves both models answering, the last takes them down.
What was measured is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import serve

from slime_ray.config.serving import LimitsConfig, RequestLogConfig, ServedModelConfig, ServingRecipe
from slime_ray.errors import ModelError, ServingError
from slime_ray.serving.endpoint import deploy
from slime_ray.training.cluster import joined
from tests.conftest import preference_rows
from tests.faults.harness import wait_until
from tests.faults.serving_load import Endpoint, Load, burst, completion, connection, count, rest, stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT, BIN = Path(__file__).parents[2], Path(sys.executable).parent
CHANGING, STAYING = MODELS = ("changing", "staying")
AT_ONCE, BODY_S, DRAIN_S = 8, 2.0, 4.0
LONGEST = 16000  # tokens; even of so small a model a stream of them outlasts all that waits here
FINE = {("ok", 200, None)}
BUSY = {("refused", 429, "server_busy")}
LOST = {("refused", 503, "engine_unavailable"), ("refused", 200, "engine_unavailable")}
# Allocators keep some of what a flood of 500 took; a request that leaked its 2 kB of answer 2,000 times is above it.
GROWTH_MB = 40


@dataclass(frozen=True)
class Up(Endpoint):
    """An endpoint on a cluster of this test's own.

    Attributes:
        address: of the cluster.
        recipe: as first deployed.
        folders: models by name: old and new are alike but for their weights; misshapen's do not fit its config.json,
            cut's file of weights ends too early.
    """

    address: str
    recipe: ServingRecipe
    folders: dict[str, Path]

    def with_changing(self, **settings: Any) -> ServingRecipe:
        """The recipe with other settings for the model that changes."""
        changed = self.recipe.models[CHANGING].model_copy(update=settings)
        return self.recipe.model_copy(update={"models": {**self.recipe.models, CHANGING: changed}})

    def deploy(self, **settings: Any) -> None:
        """Deploy again, with other settings for the model that changes."""
        deploy(self.with_changing(**settings), address=self.address, say=lambda line: None)

    def written(self, folder: Path) -> Path:
        """The recipe, with the new checkpoint, in a file."""
        recipe = self.with_changing(source=str(self.folders["new"]))
        path = folder / "serve.toml"
        values = flat(recipe.model_dump(exclude_unset=True))
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values))
        return path


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def write_models(folder: Path) -> dict[str, Path]:
    """Tiny Llamas with heads of 32, the least that vLLM's attention on a CPU knows."""
    import torch

    from slime_ray.quickstart.models import make_llama, make_tokenizer

    tokenizer = make_tokenizer([row["prompt"] for row in preference_rows(50, seed=0)], vocabulary=300)
    for seed, name in enumerate(("old", "new", STAYING)):
        model = make_llama(tokenizer, layers=2, hidden=64, heads=2, tied=False, seed=seed)
        model.config.max_position_embeddings = LONGEST + 100
        with torch.no_grad():  # so that what each one says is its own
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6.0)
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    for name in ("misshapen", "cut"):
        shutil.copytree(folder / "new", folder / name)
    config = folder / "misshapen" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 170', '"intermediate_size": 192'))
    weights = folder / "cut" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """More logical CPUs than this machine may have: while a model is replaced, the old and the new one run."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112, Ray's name
    folder = tmp_path_factory.mktemp("serving")
    models = write_models(folder / "models")
    recipe = ServingRecipe(
        port=0,
        models={
            CHANGING: ServedModelConfig(source=str(models["old"]), kv_cache_gb=0.2),
            STAYING: ServedModelConfig(source=str(models[STAYING]), kv_cache_gb=0.2),
        },
        limits=LimitsConfig(concurrent=AT_ONCE, body_seconds=BODY_S, max_tokens=LONGEST),
        log=RequestLogConfig(file=str(folder / "requests.jsonl")),
        drain_seconds=DRAIN_S,
    )
    cluster: Any = Cluster(
        initialize_head=True, connect=False, head_node_args={"num_cpus": 8, "include_dashboard": False}
    )
    try:
        began = time.monotonic()
        running = deploy(recipe, address=cluster.address, say=lambda line: None)
        print(f"\n{time.monotonic() - began:.1f} s to start two engines")
        with joined(cluster.address):
            (node,) = ray.nodes()
        shown = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        yield Up(running.base_url, MODELS, folder / "requests.jsonl", shown, cluster.address, recipe, models)
    finally:
        cluster.shutdown()


def descendants() -> list[psutil.Process]:
    """This process's own, and so those of its cluster."""
    return psutil.Process().children(recursive=True)


def title(process: psutil.Process) -> str:
    """What a process calls itself."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def process_of(model: str, part: str) -> psutil.Process:
    """A process of a model's engine: VLLM::EngineCore or VLLM::Worker."""
    (replica,) = [each for each in descendants() if f"ServeReplica:slime-ray:Engine:{model}" in title(each)]
    (found,) = [each for each in replica.children(recursive=True) if part in title(each)]
    return found


def engines() -> dict[str, int]:
    """The process of each model's engine."""
    return {model: process_of(model, "VLLM::EngineCore").pid for model in MODELS}


def passed() -> list[psutil.Process]:
    """The processes that requests pass: the proxy, the ingress, and of each engine its replica, core and worker."""
    parts = ("ray::ProxyActor", "ray::ServeReplica", "VLLM::")
    found: list[psutil.Process] = []

    def all_found() -> bool:  # one whose title is just being written is missed
        found[:] = [each for each in descendants() if title(each).startswith(parts)]
        return len(found) == 2 + 3 * len(MODELS)

    wait_until(all_found)
    return found


def kill_actor(up: Up, deployment: str) -> None:
    """Kill a deployment's only replica as Ray kills actors."""
    import ray
    from ray.util import list_named_actors

    with joined(up.address):
        prefix = f"SERVE_REPLICA::slime-ray#{deployment}#"
        found: list[Any] = list_named_actors(all_namespaces=True)
        (name,) = [each["name"] for each in found if each["name"].startswith(prefix)]
        ray.kill(ray.get_actor(name, namespace="serve"))


def test_five_hundred_clients_where_eight_may(up: Up) -> None:
    for _ in range(2):  # what is made once, is made now
        burst(up.base_url, CHANGING, clients=500, each=1, tokens=16)
    wait_until(lambda: len(up.logged()) >= 1000)
    counted, logged = up.metric("slime_ray_requests_total"), len(up.logged())
    processes = passed()
    resident = [each.memory_info().rss for each in processes]
    began = time.monotonic()
    outcomes = burst(up.base_url, CHANGING, clients=500, each=4, tokens=16)
    print(f"\n2,000 requests of 500 clients in {time.monotonic() - began:.1f} s: {dict(count(outcomes))}")
    assert set(count(outcomes)) == FINE | BUSY
    assert all(out.retry_after == "1" for out in outcomes if out.status == 429)
    assert len({out.text for out in outcomes if out.kind == "ok"}) == 1
    wait_until(lambda: len(up.logged()) == logged + 2000)
    told = up.logged()[logged:]
    assert Counter(line["status"] for line in told) == Counter(out.status for out in outcomes)
    assert sum(line["completion_tokens"] for line in told) == 16 * sum(out.kind == "ok" for out in outcomes)
    assert up.metric("slime_ray_requests_total") - counted == 2001  # and the page itself, the first time
    assert up.in_flight() == 0
    grown = [(each.memory_info().rss - before) / 1e6 for each, before in zip(processes, resident, strict=True)]
    print("MB more: " + ", ".join(f"{title(each)} {more:.1f}" for each, more in zip(processes, grown, strict=True)))
    assert max(grown) < GROWTH_MB


def test_clients_that_leave_send_halves_or_read_slowly(up: Up) -> None:
    with Load(up.base_url, [STAYING]) as others:
        check_leaving(up)
        check_halves(up)
        check_slow_reader(up)
    assert set(others.counts()) == FINE
    assert up.in_flight() == 0


def check_leaving(up: Up) -> None:
    """Those that leave in the midst of a stream give back their places, and the engine stops working for them."""
    leaving = [stream(up.base_url, CHANGING, tokens=LONGEST) for _ in range(5)]
    wait_until(lambda: up.in_engine(CHANGING) == 5, timeout_s=10)
    for each in leaving:
        each.close()
    wait_until(lambda: up.in_flight() <= 2, timeout_s=5)
    # An engine that stands still shows nothing new: it is given something to do.
    wait_until(lambda: bool(up.answers()) and up.in_engine(CHANGING) == 0, timeout_s=10)
    gone = [line for line in up.logged() if line["outcome"] == "gone"]
    assert len(gone) == 5
    assert all(line["completion_tokens"] < LONGEST for line in gone)


def check_halves(up: Up) -> None:
    """Bodies that stop in the midst hold a place for `body_seconds`, or until the client leaves."""
    began, body = time.monotonic(), completion(CHANGING, stream=True, tokens=8)
    waiting, leaving = (connection(up.base_url, body, cut=5) for _ in range(2))
    leaving.close()
    answer = rest(waiting)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_timeout"' in answer
    assert BODY_S <= time.monotonic() - began < BODY_S + 5


def check_slow_reader(up: Up) -> None:
    """One that takes a byte now and then gets its answer whole; it holds its place no longer than the engine needs."""
    slow = connection(up.base_url, completion(CHANGING, stream=True, tokens=2000), window=4096)
    first = b"".join(slow.recv(1) for _ in range(20) if not time.sleep(0.1))
    assert first.startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: any(line["completion_tokens"] == 2000 for line in up.logged()), timeout_s=90)
    assert b"data: [DONE]" in rest(slow)


def test_a_checkpoint_that_does_not_load_replaces_nothing(up: Up) -> None:
    before, cards, running = up.answers(), up.get("/v1/models").json(), engines()
    with Load(up.base_url, MODELS) as load:
        with pytest.raises(ModelError, match=r"model\.safetensors: cut short or damaged"):
            up.deploy(source=str(up.folders["cut"]))
        with pytest.raises(ServingError, match=r"engine, which asks for 64 CPU: .* has 6 CPU free on 1 node"):
            up.deploy(source=str(up.folders["new"]), cpus=64)
        began = time.monotonic()
        with pytest.raises(ServingError, match="its engine does not start") as refused:
            up.deploy(source=str(up.folders["misshapen"]))
        print(f"\nrefused after {time.monotonic() - began:.1f} s under {dict(load.counts())}:\n{refused.value}")
    assert len(str(refused.value).splitlines()) == 1
    with joined(up.address):  # not only does it go on: it is what Serve would start again
        assert serve.status().applications["slime-ray"].status == "RUNNING"
    assert set(load.counts()) == FINE
    assert (up.answers(), up.get("/v1/models").json(), engines()) == (before, cards, running)


def test_a_new_checkpoint_takes_over_with_no_failed_request(up: Up) -> None:
    before, running = up.answers(), engines()
    with Load(up.base_url, MODELS) as load:
        began = time.monotonic()
        up.deploy(source=str(up.folders["new"]))
        took = time.monotonic() - began
        time.sleep(DRAIN_S)
    print(f"\nreplaced in {took:.1f} s under {dict(load.counts())}")
    assert set(load.counts()) == FINE
    after = up.answers()
    assert after[CHANGING] != before[CHANGING]
    assert after[STAYING] == before[STAYING]
    assert {out.text for out in load.outcomes if out.model == CHANGING} == {before[CHANGING], after[CHANGING]}
    assert engines()[STAYING] == running[STAYING]


def test_an_engine_and_a_replica_are_killed_under_load(up: Up) -> None:
    """Unwell at once, well again without help; nothing in between is in a form that no client reads."""
    with Load(up.base_url, MODELS) as load:
        process_of(CHANGING, "VLLM::EngineCore").kill()
        kill_actor(up, f"Engine:{STAYING}")
        lost = time.monotonic()
        wait_until(lambda: up.get("/health").status_code == 503, timeout_s=20)
        wait_until(lambda: up.get("/health").status_code == 200, timeout_s=240)
        well = time.monotonic()
        print(f"\n{well - lost:.1f} s to recover; {dict(load.counts())}")
        wait_until(lambda: {out.model for out in load.outcomes if out.began > well} == set(MODELS))
    assert set(load.counts()) <= FINE | LOST
    assert all(out.retry_after == "1" for out in load.outcomes if out.status == 503)
    assert all(out.kind == "ok" for out in load.outcomes if out.began > well)
    assert max(out.seconds for out in load.outcomes) < 20  # none waited for the engine, and so kept a place from others


def test_the_only_ingress_is_killed_under_load(up: Up) -> None:
    """Ray's proxy keeps requests until it is back."""
    with Load(up.base_url, MODELS) as load:
        kill_actor(up, "Ingress")
        lost = time.monotonic()
        wait_until(lambda: any(out.kind == "ok" and out.began > lost for out in load.outcomes), timeout_s=120)
        print(f"\nthe ingress was away for {time.monotonic() - lost:.1f} s; {dict(load.counts())}")
    failed = [out for out in load.outcomes if out.kind != "ok"]
    assert all(out.began < lost for out in failed), failed  # what it was working on, and nothing later


def test_serve_run_takes_what_runs_already(up: Up, tmp_path: Path) -> None:
    """As `serve run serve.chat:build config=RECIPE` from the root does on a cluster; equal engines are kept."""
    running = engines()
    command = [BIN / "serve", "run", "--name", "slime-ray", "--non-blocking", "serve.chat:build"]
    place = os.environ | {"RAY_ADDRESS": up.address}
    recipe = f"config={up.written(tmp_path)}"
    ended = subprocess.run([*command, recipe], env=place, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert set(up.answers()) == set(MODELS)
    assert engines() == running


def test_sigterm_gives_answers_their_time_and_no_more(up: Up, tmp_path: Path) -> None:
    place = os.environ | {"RAY_ADDRESS": up.address}
    command = subprocess.Popen(
        [BIN / "slime-ray", "serve", up.written(tmp_path)], env=place, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert f"{up.base_url}\n" in iter(command.stdout.readline, "")  # Serve stays where it listens
    long = stream(up.base_url, CHANGING, tokens=LONGEST)
    with Load(up.base_url, MODELS, tokens=200) as load:
        wait_until(lambda: up.in_flight() >= 3)
        asked = time.monotonic()
        command.send_signal(signal.SIGTERM)
        newcomer = completion(CHANGING, stream=False, tokens=1)
        wait_until(lambda: b'"draining"' in rest(connection(up.base_url, newcomer)), timeout_s=DRAIN_S)
        assert command.wait(DRAIN_S + 30) == 0
        took = time.monotonic() - asked
    print(f"\nstopped after {took:.1f} s; {dict(load.counts())}")
    assert set(count([out for out in load.outcomes if out.began < asked])) == FINE
    cut = rest(long)
    print(cut[-300:])
    assert b"[DONE]" not in cut
    assert not any("ServeReplica" in title(each) or "VLLM" in title(each) for each in descendants())
