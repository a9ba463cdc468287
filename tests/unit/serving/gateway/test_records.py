"""What is written down of a request: its id, its line in the log, its part in the metrics; and to whom CORS speaks."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from slime_ray.config.serving import KeysConfig, RequestLogConfig
from slime_ray.serving.gateway.keys import Keys, add_key
from slime_ray.serving.gateway.record import Record, record_of
from slime_ray.serving.gateway.refusal import Refusal
from slime_ray.serving.gateway.request_log import RequestLog
from slime_ray.serving.gateway.stack import Gateway
from tests.unit.serving.gateway.asgi import CHAT, JSON, answer, begin_events, called, fine, guarded

FIELDS = [
    "time", "request_id", "key", "method", "route", "model", "stream", "status", "outcome", "code", "prompt_tokens",
    "completion_tokens", "first_token_s", "seconds", "tokens_per_s",
]  # fmt: skip


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    """A handler that fills in its record, as the real one does; its model comes from a header."""
    record = record_of(scope)
    headers = dict(scope["headers"])
    record.model = headers.get(b"x-model", b"m").decode()
    record.stream = b"x-stream" in headers
    if b"x-fault" in headers:
        raise ValueError("fault")
    if b"x-refuse" in headers:
        raise Refusal(400, "no", code="too_long")
    record.prompt_tokens, record.completion_tokens = 7, 5
    record.prompt, record.answer = "the prompt", "the answer"
    if record.stream:
        await begin_events(send)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    else:
        await answer(send)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(gate: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics by its name and labels."""
    page = called(gate, "GET", "/metrics", headers=[], body=b"").body.decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(gate: Gateway, name: str, **labels: str) -> float:
    return metrics(gate).get((f"slime_ray_{name}", frozenset(labels.items())), 0.0)


def test_a_request_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "requests.jsonl"
    gate = guarded(chat, log={"file": str(path)})
    before = time.time()
    called(gate, headers=[JSON, (b"x-request-id", b"mine"), (b"x-stream", b"1")])
    called(gate)
    called(gate, headers=[JSON, (b"x-refuse", b"1")])
    called(gate, headers=[JSON, (b"x-fault", b"1")])
    called(gate, body=b"\xff")
    called(gate, "GET", "/health", headers=[], body=b"")
    stream, plain, refused, failed, garbled = lines(path)
    assert list(stream) == FIELDS
    assert before - 0.001 <= datetime.fromisoformat(stream["time"]).timestamp() <= time.time()
    assert stream["time"].endswith("+00:00")
    said = {name: stream[name] for name in FIELDS if name not in ("time", "first_token_s", "seconds", "tokens_per_s")}
    assert said == {
        "request_id": "mine",
        "key": None,
        "method": "POST",
        "route": CHAT,
        "model": "m",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "code": None,
        "prompt_tokens": 7,
        "completion_tokens": 5,
    }
    assert 0 < stream["first_token_s"] <= stream["seconds"] < 10
    assert stream["tokens_per_s"] == pytest.approx(5 / stream["seconds"], rel=0.05)
    assert (plain["stream"], plain["first_token_s"], plain["outcome"]) == (False, None, "ok")
    told = [(line["status"], line["outcome"], line["code"]) for line in (refused, failed, garbled)]
    assert told == [(400, "refused", "too_long"), (500, "failed", "internal_error"), (400, "refused", "invalid_json")]
    assert "the prompt" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("status", "outcome"), [(200, "ok"), (404, "refused"), (502, "failed")])
def test_what_an_app_answers_by_itself_counts_by_its_status(status: int, outcome: str, tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, status=status)

    called(guarded(app, log={"file": str(tmp_path / "log")}))
    assert lines(tmp_path / "log")[0]["outcome"] == outcome


def test_prompts_and_answers_are_logged_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    called(guarded(chat, log={"text": True}))
    line = json.loads(capsys.readouterr().out)
    assert list(line) == [*FIELDS, "prompt", "answer"]
    assert (line["prompt"], line["answer"]) == ("the prompt", "the answer")


@given(
    path=st.text(),
    method=st.text(max_size=9),
    model=st.text(max_size=9) | st.just("x" * 10_000),
    request_id=st.binary(max_size=200),
)
def test_no_request_writes_more_than_its_line(path: str, method: str, model: str, request_id: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).model = model
        await answer(send)

    written: list[str] = []
    gate = guarded(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", written.append)
        reply = called(gate, method, f"/{path}", headers=[(b"x-request-id", request_id)], body=b"")
    line = "".join(written)
    assert line.endswith("\n")
    assert line.isascii()
    assert line.count("\n") == 1
    assert len(line) < 2500
    fields = json.loads(line)
    assert fields["route"] in ("other", "/v1/models/{model}")
    assert fields["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
    well_formed = 0 < len(request_id) <= 128 and all(33 <= byte <= 126 for byte in request_id)
    assert (reply.headers["x-request-id"].encode("latin-1") == request_id) == well_formed
    assert fields["request_id"] == reply.headers["x-request-id"]


def test_the_log_follows_a_rotation_and_a_removal(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    gate = guarded(fine, log={"file": str(path)})
    called(gate)
    path.rename(tmp_path / "old.jsonl")
    called(gate)
    called(gate)
    assert (len(lines(tmp_path / "old.jsonl")), len(lines(path))) == (1, 2)
    path.unlink()
    called(gate)
    assert len(lines(path)) == 1


def _write_many(path: str, key: str) -> None:
    log = RequestLog(RequestLogConfig(file=path, text=True))
    for number in range(200):
        record = Record(request_id=str(number), method="POST", route=CHAT, key=key, prompt="x" * 5000)
        assert log.write(record)


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    context = get_context("fork")
    processes = [context.Process(target=_write_many, args=(str(path), key)) for key in ("a", "b", "c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    written = [(line["key"], int(line["request_id"])) for line in lines(path)]
    assert sorted(written) == [(key, number) for key in ("a", "b", "c") for number in range(200)]


def test_a_log_that_cannot_be_written_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "requests.jsonl"
    folder.mkdir()
    gate = guarded(chat, log={"file": str(folder)})
    with caplog.at_level(logging.ERROR, logger="slime_ray.serving"):
        assert [called(gate).status for _ in range(3)] == [200] * 3
    assert len(caplog.records) == 1
    assert "the request log cannot be written" in caplog.text
    assert value(gate, "log_failures_total") == 3
    folder.rmdir()
    assert called(gate).status == 200
    assert len(lines(folder)) == 1
    assert value(gate, "log_failures_total") == 4


def test_a_line_that_a_full_disk_cut_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requests.jsonl"
    gate = guarded(fine, log={"file": str(path)})
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:20]))
    called(gate)
    monkeypatch.setattr(os, "write", whole)
    called(gate)
    torn, good = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(good)["status"] == 200
    assert value(gate, "log_failures_total") == 1


def test_metrics_by_model_and_key(tmp_path: Path) -> None:
    gate = guarded(chat, log={"file": str(tmp_path / "log")})
    for more in ([], [], [(b"x-stream", b"1")], [(b"x-model", b"n")], [(b"x-model", b"n")]):
        called(gate, headers=[JSON, *more])
    called(gate, headers=[JSON, (b"x-refuse", b"1")])
    called(gate, headers=[JSON, (b"x-fault", b"1")])
    called(gate, path="/secret-path-1", headers=[JSON, (b"x-refuse", b"1")])
    mine = {"model": "m", "key": "-"}
    assert value(gate, "requests_total", **mine, route=CHAT, status="200") == 3
    assert value(gate, "requests_total", **mine, route="other", status="400") == 1
    assert value(gate, "requests_total", model="n", key="-", route=CHAT, status="200") == 2
    assert value(gate, "completion_tokens_total", **mine) == 15
    assert value(gate, "prompt_tokens_total", **mine) == 21
    assert value(gate, "time_to_first_token_seconds_count", **mine) == 1
    assert value(gate, "tokens_per_second_count", **mine) == 3
    assert value(gate, "refused_total", code="too_long") == 2
    assert value(gate, "refused_total", code="internal_error") == 1
    assert value(gate, "log_failures_total") == 0
    shown = str(metrics(gate))
    assert "secret-path" not in shown


def test_metrics_name_keys_and_need_one(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "alice")
    keys = Keys.load(KeysConfig(file=str(tmp_path / "keys.json")))
    gate = guarded(chat, keys=keys, log={"file": str(tmp_path / "log")})
    mine = (b"authorization", f"Bearer {key}".encode())
    called(gate, headers=[JSON, mine])
    called(gate, headers=[JSON])
    assert called(gate, "GET", "/metrics", headers=[]).status == 401
    page = called(gate, "GET", "/metrics", headers=[mine]).body.decode()
    assert f'slime_ray_requests_total{{key="alice",model="m",route="{CHAT}",status="200"}} 1.0' in page
    assert 'slime_ray_refused_total{code="invalid_api_key"} 2.0' in page
    assert key not in page + (tmp_path / "log").read_text()


@pytest.mark.parametrize("proxied", [False, True])
def test_the_id_is_sent_back_once_and_goes_inside(proxied: bool) -> None:
    inside: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.append(dict(scope["headers"])[b"x-request-id"])
        assert sum(name == b"x-request-id" for name, _ in scope["headers"]) == 1
        headers = [(b"x-request-id", b"the engine's"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    gate = guarded(app, proxied=proxied)
    for given_ids, expected in [([b"mine"], "mine"), ([b"a b"], None), ([b"one", b"two"], "one"), ([], None)]:
        reply = called(gate, headers=[JSON, *[(b"x-request-id", one) for one in given_ids]])
        used = inside.pop().decode()
        assert used == (expected or used)
        assert len(used) == (len(expected) if expected else 32)
        # Ray Serve's proxy adds its own; two would reach the client as one with a comma in it.
        assert reply.headers.get("x-request-id") == (None if proxied else used)
    refused = called(gate, body=b"{", headers=[JSON, (b"x-request-id", b"mine")])
    assert refused.headers.get("x-request-id") == (None if proxied else "mine")


ORIGIN = (b"origin", b"https://chat.example")
ASKING = [
    ORIGIN,
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"authorization,x-y"),
]


def test_without_origins_cors_is_off() -> None:
    gate = guarded(fine)
    for headers, method in ([[JSON, ORIGIN], "POST"], [ASKING, "OPTIONS"]):
        reply = called(gate, method, headers=headers)
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_cors_is_for_the_origins_that_are_named(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "alice")
    keys = Keys.load(KeysConfig(file=str(tmp_path / "keys.json")))
    gate = guarded(fine, keys=keys, cors_origins=["https://chat.example"])
    asked = called(gate, "OPTIONS", headers=ASKING)
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert asked.headers["access-control-allow-headers"] == "authorization,x-y"
    # The page can read a refusal; it is refused all the same.
    refused = called(gate, headers=[JSON, ORIGIN])
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://chat.example")
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    other = called(gate, "OPTIONS", headers=[(b"origin", b"https://evil.example"), *ASKING[1:]])
    assert "access-control-allow-origin" not in other.headers
    for reply in (asked, refused, other):
        assert "access-control-allow-credentials" not in reply.headers


def test_a_gateway_travels_to_another_process(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "alice")
    keys = Keys.load(KeysConfig(file=str(tmp_path / "keys.json")))
    sent = cloudpickle.dumps(guarded(chat, keys=keys, log={"file": str(tmp_path / "log")}, cors_origins=["https://x"]))
    assert key.encode() not in sent
    gate = cloudpickle.loads(sent)
    assert called(gate, headers=[JSON, (b"authorization", f"Bearer {key}".encode())]).status == 200
    assert lines(tmp_path / "log")[0]["key"] == "alice"


def test_start_and_stop_reach_the_app() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    called(guarded(app), type_="lifespan")
    assert seen == ["lifespan"]
