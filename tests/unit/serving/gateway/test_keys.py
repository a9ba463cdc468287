"""Keys are named, hashed, revocable while an endpoint runs; whatever is wrong with them lets nobody in."""

from __future__ import annotations

import json
import logging
import pickle
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import pytest

from slime_ray.config.serving import KeysConfig
from slime_ray.errors import ServingError
from slime_ray.serving.gateway import keys as module
from slime_ray.serving.gateway.keys import Keys, KeysUnavailableError, add_key, check_host, list_keys, revoke_key


@pytest.fixture(autouse=True)
def _alert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the file at every request."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def loaded(file: Path) -> Keys:
    return Keys.load(KeysConfig(file=str(file), env="SLIME_RAY_TEST_NO_KEYS"))


def test_a_key_is_in_no_file_and_in_no_pickle(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_TEST_KEYS", "bob=hunter2-hunter2,carol=a=b")
    key = add_key(file, "alice")
    keys = Keys.load(KeysConfig(file=str(file), env="SLIME_RAY_TEST_KEYS"))
    assert keys.name_of(key) == "alice"
    stored = file.read_bytes() + pickle.dumps(keys) + cloudpickle.dumps(keys) + repr(vars(keys)).encode()
    for secret in (key.encode(), key.removeprefix("sk-slime-").encode(), b"hunter2", b"a=b"):
        assert secret not in stored
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_has_256_random_bits_and_a_salt_of_its_own(file: Path) -> None:
    made = [add_key(file, f"key-{number}") for number in range(20)]
    # 43 characters of base64 hold 258 bits.
    assert all(re.fullmatch(r"sk-slime-[\w-]{43}", key) for key in made)
    assert len(set(made)) == len({info.salt for info in list_keys(file)}) == 20
    keys = loaded(file)
    assert [keys.name_of(key) for key in made] == [f"key-{number}" for number in range(20)]


def test_a_key_is_revoked_without_a_restart(file: Path) -> None:
    first, second = add_key(file, "alice"), add_key(file, "bob")
    keys = loaded(file)
    assert (keys.name_of(first), keys.name_of(second)) == ("alice", "bob")
    revoke_key(file, "alice")
    assert (keys.name_of(first), keys.name_of(second)) == (None, "bob")
    third = add_key(file, "alice")  # the name is free again; the old key is not
    assert (keys.name_of(first), keys.name_of(third)) == (None, "alice")
    assert [(info.name, info.revoked is None) for info in list_keys(file)] == [
        ("alice", False),
        ("bob", True),
        ("alice", True),
    ]


def test_a_name_that_is_revoked_again_keeps_its_first_date(file: Path) -> None:
    add_key(file, "alice")
    revoke_key(file, "alice")
    first = str(list_keys(file)[0].revoked)[:4]
    file.write_text(file.read_text().replace(f'"revoked": "{first}', '"revoked": "1999'))
    add_key(file, "alice")
    revoke_key(file, "alice")
    assert [info.revoked is not None and info.revoked.year == 1999 for info in list_keys(file)] == [True, False]


def test_a_file_is_looked_at_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 1.0)
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    key = add_key(file, "alice")
    keys = loaded(file)
    assert keys.name_of(key) == "alice"
    revoke_key(file, "alice")
    now = 100.9
    assert keys.name_of(key) == "alice"
    now = 101.1
    assert keys.name_of(key) is None


def test_keys_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_TEST_KEYS", " alice = first-key , bob=with=equals,")
    keys = Keys.load(KeysConfig(env="SLIME_RAY_TEST_KEYS"))
    sent = pickle.loads(pickle.dumps(keys))
    monkeypatch.delenv("SLIME_RAY_TEST_KEYS")  # another process has no such variable
    for some in (keys, sent):
        assert some.required
        assert some.name_of("first-key") == "alice"
        assert some.name_of("with=equals") == "bob"
        assert [some.name_of(text) for text in ("", "first-ke", "first-key ", "alice", "é")] == [None] * 5


def test_every_key_is_compared_whichever_is_right(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [add_key(file, name) for name in ("a", "b", "c")]
    revoke_key(file, "b")
    keys = loaded(file)
    compared: list[bool] = []
    plain = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append(plain(a, b)) or compared[-1])
    for key in (*made, "wrong"):
        compared.clear()
        keys.name_of(key)
        assert len(compared) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text("{"),
        lambda file: file.write_text('{"keys": [{"name": "alice"}]}'),
        lambda file: file.write_text(file.read_text().replace('"sha256": "', '"sha256": "x')),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: file.write_text("[]"),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: file.chmod(0o622),
    ],
)
def test_a_damaged_file_lets_nobody_in(
    file: Path, damage: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIME_RAY_TEST_KEYS", "bob=key-of-bob")
    key = add_key(file, "alice")
    whole = file.read_bytes()
    keys = Keys.load(KeysConfig(file=str(file), env="SLIME_RAY_TEST_KEYS"))
    assert keys.name_of(key) == "alice"
    damage(file)  # pyright: ignore[reportCallIssue]
    with caplog.at_level(logging.WARNING):
        for presented in (key, "key-of-bob", "wrong", key):
            with pytest.raises(KeysUnavailableError):
                keys.name_of(presented)
    assert keys.required
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once
    assert str(file) in caplog.text
    assert key not in caplog.text
    file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
    file.write_bytes(whole)
    file.chmod(0o600)
    assert keys.name_of(key) == "alice"
    assert keys.name_of("key-of-bob") == "bob"


def test_another_process_reads_the_file_itself(file: Path) -> None:
    key = add_key(file, "alice")
    keys = loaded(file)
    assert keys.name_of(key) == "alice"
    sent = pickle.dumps(keys)
    assert list_keys(file)[0].sha256.encode() not in sent
    revoke_key(file, "alice")
    assert pickle.loads(sent).name_of(key) is None
    file.unlink()
    with pytest.raises(KeysUnavailableError):
        pickle.loads(sent).name_of(key)


def test_changes_at_once_lose_none(file: Path) -> None:
    add_key(file, "old")
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(add_key, file, f"key-{number}") for number in range(12)]
        pool.submit(revoke_key, file, "old").result()
        for future in made:
            future.result()
    assert {info.name for info in list_keys(file) if info.revoked is None} == {f"key-{n}" for n in range(12)}


def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    add_key(file, "alice")
    link.symlink_to(file)
    key = add_key(link, "bob")
    assert link.is_symlink()
    assert loaded(file).name_of(key) == "bob"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("secretsecret", "entry 1 is not NAME=KEY"),
        ("a=1,secretsecret", "entry 2 is not NAME=KEY"),
        ("a b=secretsecret", "entry 1 is not NAME=KEY"),
        ("a=", "the key of 'a' is empty"),
        ("a=secret secret", "a character that no key has"),
        ("a=sécret", "a character that no key has"),
        ("a=secret,a=other", "'a' is there twice"),
    ],
)
def test_a_wrong_variable_is_named_and_not_shown(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_TEST_KEYS", value)
    with pytest.raises(ServingError, match="SLIME_RAY_TEST_KEYS") as raised:
        Keys.load(KeysConfig(env="SLIME_RAY_TEST_KEYS"))
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


def test_mistakes_with_a_file_are_sentences(file: Path) -> None:
    with pytest.raises(ServingError, match=r"no such file of keys; make it with"):
        loaded(file)
    with pytest.raises(ServingError, match="expected a file on a disk"):
        Keys.load(KeysConfig(file="memory://bucket/keys.json"))
    with pytest.raises(ServingError, match=r"'a/b' is no name of a key"):
        add_key(file, "a/b")
    add_key(file, "alice")
    with pytest.raises(ServingError, match="there is a key 'alice' already"):
        add_key(file, "alice")
    with pytest.raises(ServingError, match="no valid key is called 'bob'; there are alice"):
        revoke_key(file, "bob")
    revoke_key(file, "alice")
    with pytest.raises(ServingError, match="no valid key is called 'alice'; there are none"):
        revoke_key(file, "alice")
    file.write_text(json.dumps({"keys": [{"name": "x", "salt": "secret"}]}))
    with pytest.raises(ServingError, match=r"damaged at keys\.0\.salt; restore it") as raised:
        add_key(file, "bob")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.5", False),
        ("::ffff:10.0.0.5", False),
        ("127.0.0.1.example.com", False),
        ("gpu-box", False),
    ],
)
def test_a_network_is_served_with_keys_alone(host: str, local: bool, file: Path) -> None:
    none = Keys.load(KeysConfig(env="SLIME_RAY_TEST_NO_KEYS"))
    assert not none.required
    add_key(file, "alice")
    check_host(host, loaded(file))
    if local:
        check_host(host, none)
    else:
        with pytest.raises(ServingError, match="no API key is set"):
            check_host(host, none)
