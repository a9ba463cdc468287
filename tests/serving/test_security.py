"""Every route with every kind of key, paths and bodies that are meant to harm, and requests that are none."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from slime_ray.serving.gateway.keys import LOOK_EVERY_S, revoke_key
from tests.served import LIMITS, MODEL, VARIABLE, Serving
from tests.serving import wire
from tests.serving.wire import CHAT, Reply

MODELS = "/v1/models"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "red"}], "max_tokens": 1}).encode()
JSON = ("content-type", "application/json")

Credentials = Callable[[Serving], list[tuple[str, str]]]


def _bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


# No header of these is a right one.
_WRONG: dict[str, Credentials] = {
    "none": lambda _: [],
    "wrong": lambda _: _bearer("sk-slime-" + "0" * 43),
    "revoked": lambda serving: _bearer(serving.keys["revoked"]),
    "name": lambda _: _bearer("first"),
    "hash": lambda serving: _bearer(json.loads(serving.keys_file.read_bytes())["keys"][0]["sha256"]),
    "empty": lambda _: [("authorization", "")],
    "scheme alone": lambda _: [("authorization", "Bearer")],
    "no scheme": lambda serving: [("authorization", serving.keys["first"])],
    "basic": lambda serving: [("authorization", f"Basic {serving.keys['first']}")],
    "twice": lambda serving: _bearer(serving.keys["first"]) * 2,
    "right and wrong": lambda serving: _bearer(serving.keys["first"]) + _bearer("x"),
    "longer": lambda serving: _bearer(serving.keys["first"] + "0"),
    "shorter": lambda serving: _bearer(serving.keys["first"][:-1]),
    "two words": lambda serving: _bearer(serving.keys["first"] + " x"),
    "huge": lambda _: _bearer("0" * 10000),
    "other header": lambda serving: [("x-api-key", serving.keys["first"]), ("api-key", serving.keys["first"])],
    "cookie": lambda serving: [("cookie", f"authorization=Bearer {serving.keys['first']}")],
    "not ASCII": lambda _: [("authorization", "Bearer \xff\xfe")],
}
_RIGHT: dict[str, Credentials] = {
    "right": lambda serving: _bearer(serving.keys["first"]),
    "of the environment": lambda serving: _bearer(serving.keys[VARIABLE]),
    "lower case": lambda serving: [("AUTHORIZATION", f"bearer {serving.keys['second']}")],
}
# Method, target, and the status that a right key gets.
_ROUTES = [
    ("GET", MODELS, 200),
    ("GET", f"{MODELS}/{MODEL}", 200),
    ("GET", f"{MODELS}/{MODEL.replace('/', '%2F')}", 200),
    ("GET", "/metrics", 200),
    ("HEAD", "/metrics", 200),
    ("POST", CHAT, 200),
    ("GET", f"{MODELS}?x=1#y", 200),
    ("GET", f"{MODELS}/other", 404),
    ("GET", f"{MODELS}/..", 404),
    ("GET", f"{MODELS}/%2e%2e", 404),
    ("GET", f"{MODELS}/..%2f..%2fetc%2fpasswd", 404),
    ("GET", f"{MODELS}/%00", 404),
    ("GET", f"{MODELS}/{'x' * 20000}", 404),
    ("GET", f"/{MODELS}", 404),
    ("GET", "/v1/../v1/models", 404),
    ("GET", "/health/../v1/models", 404),
    ("GET", "/health/", 404),
    ("GET", "/health%2f", 404),
    ("GET", "/HEALTH", 404),
    ("GET", "//health", 404),
    ("GET", "/v1/./models", 404),
    ("GET", "/%76%31/models", 200),
    ("GET", f"{MODELS};x", 404),
    ("GET", f"{MODELS}%20", 404),
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("GET", "/docs", 404),
    ("GET", "/redoc", 404),
    ("GET", "/openapi.json", 404),
    ("GET", "/tokenize", 404),
    ("POST", "/tokenize", 404),
    ("POST", "/v1/embeddings", 404),
    ("POST", "/v1/audio/transcriptions", 404),
    ("POST", "/score", 404),
    ("POST", "/v1/load_lora_adapter", 404),
    ("GET", "/server_info", 404),
    ("GET", "/version", 404),
    ("GET", CHAT, 405),
    ("HEAD", MODELS, 405),
    ("PUT", CHAT, 405),
    ("PATCH", CHAT, 405),
    ("DELETE", f"{MODELS}/{MODEL}", 405),
    ("OPTIONS", CHAT, 405),
    ("TRACE", CHAT, 405),
    ("POST", MODELS, 405),
    ("POST", "/metrics", 404),
    ("POST", "/health", 405),
]


def ask(serving: Serving, method: str, target: str, credentials: list[tuple[str, str]]) -> Reply:
    """A request of the table, with a body where there may be one."""
    body = BODY if method in ("POST", "PUT", "PATCH") else b""
    return wire.send(serving, wire.request(target, *credentials, JSON, method=method, body=body), method=method)


@pytest.fixture(scope="module", autouse=True)
def _revoked(serving: Serving) -> None:
    """A key is right, and no longer once it is revoked and a moment has passed."""
    assert ask(serving, "GET", MODELS, _bearer(serving.keys["revoked"])).status == 200
    revoke_key(serving.keys_file, "revoked")
    time.sleep(LOOK_EVERY_S + 0.2)


@pytest.mark.parametrize(("method", "target", "status"), _ROUTES, ids=[f"{m} {t[:40]}" for m, t, _ in _ROUTES])
def test_every_route_needs_a_key(serving: Serving, method: str, target: str, status: int) -> None:
    for name, right in _RIGHT.items():
        reply = ask(serving, method, target, right(serving))
        assert reply.status == status, f"{name}: {reply}"
        assert method == "HEAD" or status == 200 or reply.error["type"] == "invalid_request_error"
    for name, wrong in _WRONG.items():
        reply = ask(serving, method, target, wrong(serving))
        assert reply.status == 401, f"{name}: {reply}"
        assert reply.headers["www-authenticate"] == "Bearer"
        assert method == "HEAD" or reply.error["code"] == "invalid_api_key"


@pytest.mark.parametrize("where", ["api_key", "key", "authorization", "access_token"])
def test_no_key_is_read_from_the_address(serving: Serving, where: str) -> None:
    key = serving.keys["second"]
    assert ask(serving, "GET", f"{MODELS}?{where}={key}", []).status == 401
    assert ask(serving, "GET", f"{MODELS}?{where}=Bearer%20{key}", []).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_anyone_may_ask_for_the_health_and_nothing_else(serving: Serving, method: str) -> None:
    for credentials in (*_WRONG.values(), *_RIGHT.values()):
        reply = ask(serving, method, "/health", credentials(serving))
        assert reply.status == 200
        assert reply.body == (b"" if method == "HEAD" else b'{"status":"ok"}')


def test_the_proxy_tells_strangers_nothing(serving: Serving) -> None:
    """Two addresses are Ray Serve's own, before our application; the doorway leaves one of them."""
    assert ask(serving, "GET", "/-/healthz", []).body == b"success"
    assert ask(serving, "GET", "/-/routes", []).status == 404
    assert ask(serving, "GET", "/-/other", []).status == 401


@pytest.mark.parametrize("target", ["http://127.0.0.1/v1/models", "http://elsewhere.example/v1/models"])
def test_an_absolute_address_is_no_way_round(serving: Serving, target: str) -> None:
    assert ask(serving, "GET", target, []).status == 401
    assert ask(serving, "GET", target, _RIGHT["right"](serving)).status == 200


def test_no_page_of_another_site_may_ask(serving: Serving) -> None:
    origin = ("origin", "https://elsewhere.example")
    asks = ("access-control-request-method", "POST")
    for raw, method in (
        (wire.request(CHAT, origin, asks, method="OPTIONS"), "OPTIONS"),
        (wire.json_request(serving, BODY, origin), "POST"),
        (wire.request(MODELS, origin, method="GET"), "GET"),
        (wire.request("/health", origin, method="GET"), "GET"),
    ):
        reply = wire.send(serving, raw, method=method)
        assert [name for name in reply.headers if name.startswith("access-control")] == []


_OBJECT = b'{"model": "x", "messages": %s}'
# A body, further headers, and what is answered.
_BODIES: dict[str, tuple[bytes, list[tuple[str, str]], int, str]] = {
    "not UTF-8": (_OBJECT % b'"\xff\xfe"', [], 400, "invalid_json"),
    "overlong UTF-8": (_OBJECT % b'"\xc0\xaf"', [], 400, "invalid_json"),
    "UTF-16": (BODY.decode().encode("utf-16"), [], 400, "invalid_json"),
    "zero byte": (BODY + b"\0", [], 400, "invalid_json"),
    "half a pair": (_OBJECT % rb'"\ud800"', [], 400, "invalid_json"),
    "deep lists": (_OBJECT % (b"[" * 20000 + b"]" * 20000), [], 400, "invalid_json"),
    "deep objects": (b'{"a":' * 10000 + b"1" + b"}" * 10000, [], 400, "invalid_json"),
    "open lists": (b"[" * 60000, [], 400, "invalid_json"),
    "NaN": (BODY[:-1] + b', "temperature": NaN}', [], 400, "invalid_json"),
    "Infinity": (BODY[:-1] + b', "temperature": -Infinity}', [], 400, "invalid_json"),
    "1e999": (BODY[:-1] + b', "temperature": 1e999}', [], 400, "invalid_json"),
    "many digits": (BODY[:-1] + b', "seed": ' + b"9" * 5000 + b"}", [], 400, "invalid_json"),
    "above 64 bits": (BODY[:-1] + b', "seed": 99999999999999999999}', [], 400, "invalid_request"),
    "no JSON": (b"model=x", [], 400, "invalid_request"),
    "empty": (b"", [], 400, "invalid_request"),
    "list": (b"[]", [], 400, "invalid_request"),
    "null": (b"null", [], 400, "invalid_request"),
    "number": (b"1", [], 400, "invalid_request"),
    "form": (BODY, [("content-type", "application/x-www-form-urlencoded")], 400, "invalid_content_type"),
    "text": (BODY, [("content-type", "text/plain")], 400, "invalid_content_type"),
    "two types": (BODY, [JSON, JSON], 400, "invalid_content_type"),
    "no type": (BODY, [("x", "y")], 400, "invalid_content_type"),
    "charset": (BODY, [("content-type", "application/json; charset=utf-7")], 400, "invalid_content_type"),
    "gzip": (gzip.compress(BODY), [JSON, ("content-encoding", "gzip")], 400, "invalid_json"),
    "too large": (b" " * LIMITS["body_bytes"] + BODY, [], 413, "body_too_large"),
    "expectation": (BODY, [JSON, ("expect", "100-continue")], 200, ""),
    "same name twice": (BODY[:-1] + b', "max_tokens": 2}', [], 200, ""),
}


@pytest.mark.parametrize("name", _BODIES)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_that_is_none_is_refused(serving: Serving, name: str, *, chunked: bool) -> None:
    body, headers, status, code = _BODIES[name]
    credentials = _bearer(serving.keys["first"])
    headers = [*credentials, *(headers or [JSON])]
    if chunked:
        parts = [body[at : at + 7000] for at in range(0, len(body), 7000)]
        written = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        raw = wire.request(CHAT, *headers, ("transfer-encoding", "chunked"), body=written, sized=False)
    else:
        raw = wire.request(CHAT, *headers, body=body)
    with suppress(ConnectionError):  # it does not read on what it refused
        reply = wire.send(serving, raw)
        assert reply.status == status, reply
        assert status == 200 or reply.error["code"] == code
    assert wire.send(serving, wire.json_request(serving, BODY)).status == 200


def _smuggled(serving: Serving, *headers: tuple[str, str], body: bytes) -> bytes:
    hidden = wire.request(MODELS, *_bearer(serving.keys["second"]), method="GET")
    return wire.request(CHAT, *_bearer(serving.keys["first"]), JSON, *headers, body=body + hidden, sized=False)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([("content-length", "5"), ("transfer-encoding", "chunked")], b"0\r\n\r\n"),
        ([("transfer-encoding", "chunked"), ("content-length", "5")], b"0\r\n\r\n"),
        ([("content-length", "5"), ("content-length", "0")], b"0\r\n\r\n"),
        ([("content-length", "+5")], b"12345"),
        ([("content-length", "-1")], b""),
        ([("content-length", "5, 5")], b"12345"),
        ([("transfer-encoding", "xchunked")], b"0\r\n\r\n"),
        ([("transfer-encoding", "chunked, identity")], b"0\r\n\r\n"),
        ([("transfer-encoding", "identity, chunked, chunked")], b"0\r\n\r\n"),
        ([("transfer-encoding", "chunked")], b"g\r\n\r\n"),
        ([("transfer-encoding", "chunked")], b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ([("transfer-encoding ", "chunked")], b"0\r\n\r\n"),
        ([("x", "y\n z")], b""),
        ([("x\0", "y")], b""),
    ],
    ids=[
        "length and chunked", "chunked and length", "two lengths", "plus", "minus", "list of lengths", "unknown coding",
        "identity last", "chunked twice", "no size", "huge size", "blank before the colon", "folded", "zero byte",
    ],
)  # fmt: skip
def test_no_request_hides_in_another(serving: Serving, headers: list[tuple[str, str]], body: bytes) -> None:
    with wire.connected(serving, _smuggled(serving, *headers, body=body)) as connection:
        connection.settimeout(2)
        answered = b""
        with suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                answered += part
    serving.witness.bodies.append(answered)
    assert answered.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))
    assert b'"object":"list"' not in answered
    assert answered.count(b"HTTP/1.1 ") == 1


def test_other_protocols_get_nothing(serving: Serving) -> None:
    upgrade = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
    key = [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), *_bearer(serving.keys["first"])]
    for target in (CHAT, "/health", "/"):
        assert wire.send(serving, wire.request(target, *upgrade, *key, method="GET"), method="GET").status == 403
    assert wire.send(serving, wire.request(MODELS, method="GET", version="HTTP/1.0"), method="GET").status == 401
    old = wire.request(MODELS, *_bearer(serving.keys["first"]), method="GET", version="HTTP/1.0")
    assert wire.send(serving, old, method="GET").status == 200
    preface, hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"
    for raw in (preface, hello, b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"hello\r\n\r\n"):
        reply = wire.send(serving, raw)
        assert reply.status in (None, 400), reply


def test_nothing_of_an_engine_is_in_an_error(serving: Serving) -> None:
    """What a client may send that makes some part stumble; the whole suite's bodies are searched in the end."""
    with serving.client() as client:
        for body in (
            {"prompt": [10**9]},
            {"prompt": "red", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}},
            {"prompt": "red", "structured_outputs": {"regex": "(((("}},
            {"prompt": "red", "logit_bias": {"/etc/passwd": 1}},
            {"prompt": "red", "vllm_xargs": {"/": "/"}},
            {"model": "/etc/passwd", "prompt": "red"},
            {"model": "run:../..", "prompt": "red"},
        ):
            response = client.post("/v1/completions", json={"model": MODEL, "max_tokens": 1, **body})
            assert response.status_code in (200, 400, 404), response.text


def test_no_process_shows_a_key(serving: Serving) -> None:
    """But the command itself, whose environment brought one."""
    command, *others = serving.processes()
    assert len(others) > 5
    shown = {"command": str(command.cmdline())}
    shown |= {f"{process.name()} {process.pid}": f"{process.cmdline()} {process.environ()}" for process in others}
    assert [name for name, text in shown.items() for key in serving.keys.values() if key in text] == []
