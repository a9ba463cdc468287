"""Nothing but the health is answered without a key; without keys, nobody but this machine is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slime_ray.config.serving import KeysConfig
from slime_ray.serving.gateway import keys as module
from slime_ray.serving.gateway.authentication import bearer
from slime_ray.serving.gateway.keys import Keys, add_key, revoke_key
from tests.unit.serving.gateway.asgi import CHAT, JSON, Headers, called, fine, guarded

ROUTES = [
    ("GET", "/health", 200),
    ("GET", "/metrics", 200),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/m", 200),
    ("POST", CHAT, 200),
    ("POST", "/v1/completions", 200),
    ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/", 200),
    ("OPTIONS", CHAT, 200),
    ("POST", "/health", 200),
    # Nearly the health, and no more than that.
    ("GET", "/health/", 200),
    ("GET", "//health", 200),
    ("GET", "/health/../v1/models", 200),
    ("GET", "/v1/../health", 200),
    ("GET", "/HEALTH", 200),
    ("GET", "/health\x00", 200),
    ("GET", "/health;x", 200),
    ("GET", "", 200),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    return tmp_path / "keys.json"


def keys_of(file: Path) -> Keys:
    return Keys.load(KeysConfig(file=str(file), env="SLIME_RAY_TEST_NO_KEYS"))


def with_key(key: str) -> Headers:
    return [JSON, (b"authorization", f"Bearer {key}".encode())]


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_every_route_with_every_kind_of_key(method: str, path: str, status: int, file: Path, caplog: object) -> None:
    right, revoked = add_key(file, "alice"), add_key(file, "bob")
    revoke_key(file, "bob")
    app = guarded(fine, keys=keys_of(file), log={"file": str(file.parent / "log.jsonl")})
    open_to_all = (method, path) == ("GET", "/health")
    for headers in ([JSON], with_key("wrong"), with_key(revoked)):
        reply = called(app, method, path, headers=headers, client=("203.0.113.9", 1))
        if open_to_all:
            assert reply.status == 200
            continue
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert (reply.error["type"], reply.error["code"]) == ("invalid_request_error", "invalid_api_key")
        for secret in (right, revoked, "wrong", "alice", "bob", str(file)):
            assert secret not in reply.body.decode() + str(reply.headers)
    assert called(app, method, path, headers=with_key(right), client=("203.0.113.9", 1)).status == status
    if not open_to_all:  # which is only written down when it fails
        log = (file.parent / "log.jsonl").read_text()
        assert right not in log
        assert revoked not in log
        assert log.count('"key": null') == 3
        assert log.count('"key": "alice"') == 1


def test_a_prefix_moves_the_health_with_it(file: Path) -> None:
    add_key(file, "alice")
    app = guarded(fine, keys=keys_of(file))
    # By Starlette's rule: the path holds the prefix, and a path without it is taken as it is.
    for path, status in [("/llm/health", 200), ("/health", 200), ("/llmhealth", 401), ("/llm/llm/health", 401)]:
        assert called(app, "GET", path, root_path="/llm", headers=[]).status == status


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic {key}",
        b"{key}",
        b"Bearer {key} x",
        b"Bearer {key},",
        b"Bearer\t{key}",
        b"Bearer {key}\x00",
        b"Bearer \xc3\xa9{key}",
        b"Bearer \xff",
        b"Bearer " + b"a" * 100_000,
        b"Bearer" + b" " * 100_000,
        b'Bearer "{key}"',
        b"bearer  wrong",
    ],
)
def test_odd_headers_are_refused_and_nothing_worse(header: bytes, file: Path) -> None:
    key = add_key(file, "alice")
    app = guarded(fine, keys=keys_of(file))
    reply = called(app, headers=[JSON, (b"authorization", header.replace(b"{key}", key.encode()))])
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")


def test_two_headers_are_refused_even_if_both_are_right(file: Path) -> None:
    key = add_key(file, "alice")
    app = guarded(fine, keys=keys_of(file))
    right = (b"authorization", f"bearer   {key} ".encode())
    assert called(app, headers=[JSON, right]).status == 200
    for second in (right, (b"authorization", b"Bearer wrong"), (b"authorization", b"")):
        assert called(app, headers=[JSON, right, second]).status == 401
        assert called(app, headers=[JSON, second, right]).status == 401


def test_a_key_has_a_longest_length() -> None:
    assert bearer(b"Bearer " + b"a" * 1017) == "a" * 1017
    assert bearer(b"Bearer " + b"a" * 1018) is None


@given(st.binary(max_size=40) | st.builds(lambda a, b: a + b, st.sampled_from([b"Bearer ", b"bEARER  "]), st.binary()))
@example(b"Bearer \x7f")
def test_only_printable_ascii_is_a_key(value: bytes) -> None:
    found = bearer(value)
    plain = re.fullmatch(rb"bearer +([!-~]+) *", value.lower())
    assert (found is not None) == (plain is not None)
    if found is not None:
        assert found.isascii()
        assert found.isprintable()
        assert found.encode() in value


def test_damaged_keys_are_503_and_let_nobody_in(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = add_key(file, "alice")
    app = guarded(fine, keys=keys_of(file))
    assert called(app, headers=with_key(key)).status == 200
    file.write_text("{")
    for headers in (with_key(key), with_key("wrong")):
        reply = called(app, headers=headers)
        assert (reply.status, reply.error["code"]) == (503, "keys_unavailable")
        assert reply.headers["retry-after"] == "1"
        assert str(file) not in reply.body.decode()
    assert called(app, headers=[JSON]).status == 401
    assert called(app, "GET", "/health").status == 200


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        (("127.0.0.1", 1), None, 200),
        (("127.0.0.1", 1), b"127.0.0.1:8000", 200),
        (("127.0.0.1", 1), b"LocalHost", 200),
        (("::1", 1), b"[::1]:8000", 200),
        (("::ffff:127.0.0.1", 1), b"localhost:8000", 200),
        (("10.0.0.7", 1), b"localhost:8000", 403),
        (("::ffff:10.0.0.7", 1), b"localhost", 403),
        (None, b"localhost", 403),
        (("", 0), b"localhost", 403),
        # A name that its owner points at 127.0.0.1, in a page that a browser on this machine shows.
        (("127.0.0.1", 1), b"evil.example:8000", 403),
        (("127.0.0.1", 1), b"127.0.0.1.evil.example", 403),
        (("127.0.0.1", 1), b"localhost@evil.example", 403),
        (("127.0.0.1", 1), b"", 403),
        (("127.0.0.1", 1), b"\xff", 403),
    ],
)
def test_without_keys_this_machine_alone_is_served(
    client: tuple[str, int] | None, host: bytes | None, status: int
) -> None:
    app = guarded(fine)
    headers = [JSON] if host is None else [JSON, (b"host", host)]
    reply = called(app, headers=headers, client=client)
    assert reply.status == status
    if status == 403:
        assert (reply.error["type"], reply.error["code"]) == ("permission_error", "not_local")
    assert called(app, "GET", "/health", headers=headers, client=client).status == 200


def test_a_websocket_is_closed_before_anyone_sees_it() -> None:
    reply = called(guarded(fine), "GET", "/v1/realtime", type_="websocket", headers=[])
    assert reply.headers == {"closed": "websocket.close"}
