"""API keys: names and salted hashes in a file, or keys in a variable; never a key at rest.

A key made here has 256 random bits, so one round of SHA-256 is enough: nobody guesses it, fast or slow. Of keys that
the variable brings, only hashes stay in memory, so only hashes are sent to other processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slime_ray.config.serving import LOOPBACK, KeysConfig
from slime_ray.errors import ServingError
from slime_ray.storage import disk_errors, flush, is_local, place

LOG = logging.getLogger("slime_ray.serving")

LOOK_EVERY_S = 1.0
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
_HEX = r"[0-9a-f]"


class KeysUnavailableError(Exception):
    """The keys cannot be checked now, so nobody is let in."""


class KeyInfo(BaseModel):
    """One key, as its file holds it; what it hashes to says nothing of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=rf"^{_NAME}$")]
    salt: Annotated[str, Field(pattern=rf"^{_HEX}{{32}}$")]
    sha256: Annotated[str, Field(pattern=rf"^{_HEX}{{64}}$")]
    created: datetime
    revoked: datetime | None = None

    @classmethod
    def of(cls, name: str, key: str) -> KeyInfo:
        """What is kept of a key."""
        salt = secrets.token_bytes(16)
        digest = hashlib.sha256(salt + key.encode()).hexdigest()
        return cls(name=name, salt=salt.hex(), sha256=digest, created=datetime.now(UTC).replace(microsecond=0))

    def matches(self, presented: bytes) -> bool:
        """Whether this is the key, in a time that does not depend on how much of it is right."""
        digest = hashlib.sha256(bytes.fromhex(self.salt) + presented).digest()
        return hmac.compare_digest(digest, bytes.fromhex(self.sha256))


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyInfo, ...] = ()


class Keys:
    """The keys of an endpoint. A file is read again when it changes, so a key is revoked without a restart."""

    def __init__(self, fixed: tuple[KeyInfo, ...], path: Path | None) -> None:
        """Keys that stay, and the file of those that may change."""
        self._fixed = fixed
        self._path = path
        self._of_file: tuple[KeyInfo, ...] = ()
        self._state: tuple[int, int, int] | None = None
        self._problem: str | None = None
        self._looked: float | None = None

    @classmethod
    def load(cls, config: KeysConfig) -> Keys:
        """The keys that a recipe and the environment name.

        Raises:
            ServingError: the file or the variable is not what it should be.
        """
        path = None if config.file is None else place(config.file)
        if path is not None:
            if not is_local(path):
                raise ServingError(f"keys.file = {config.file!r}: expected a file on a disk; mount it where it is read")
            _read(path)
        return cls(_from_variable(config.env), path)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None or bool(self._fixed)

    def name_of(self, presented: str) -> str | None:
        """Whose key this is; None for one that is unknown or revoked. All keys are compared, whichever it is.

        Raises:
            KeysUnavailableError: the file is damaged or gone.
        """
        self._look()
        if self._problem is not None:
            raise KeysUnavailableError
        key, found = presented.encode(), None
        for info in (*self._fixed, *self._of_file):
            if info.matches(key) and info.revoked is None:
                found = info.name
        return found

    def __getstate__(self) -> dict[str, object]:
        # Another process, perhaps on another machine, looks at the file by itself; its clock is another one too.
        return {**self.__dict__, "_of_file": (), "_state": None, "_problem": None, "_looked": None}

    def _look(self) -> None:
        """Read the file again if it changed, looking at most once in `LOOK_EVERY_S`."""
        now = time.monotonic()
        if self._path is None or (self._looked is not None and now - self._looked < LOOK_EVERY_S):
            return
        self._looked = now
        problem = None
        try:
            status = self._path.stat()
            state = (status.st_ctime_ns, status.st_size, status.st_ino)  # a change of its mode counts too
            if state != self._state:
                self._of_file = _read(self._path)
                self._state = state
        except (OSError, ServingError) as error:
            problem = str(error)
        if problem is not None and self._problem is None:
            LOG.error("%s; nobody is let in until that is mended", problem)
        elif problem is None and self._problem is not None:
            LOG.warning("%s: the keys can be read again", self._path)
        self._problem = problem


def check_host(host: str, keys: Keys) -> None:
    """Refuse to serve a network without keys.

    Raises:
        ServingError: the host is not this machine's loopback, and no key is set.
    """
    if not keys.required and not is_loopback(host):
        raise ServingError(
            f"host = {host!r} and no API key is set: anyone who reaches this machine could use the models; make a key "
            "with `slime-ray keys add` and set keys.file, or leave host at 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine and no other."""
    if host in LOOPBACK:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def add_key(path: Path, name: str) -> str:
    """Make a key, note its hash in a file, and return it: it is nowhere else.

    Raises:
        ServingError: the name is no name or is taken, or the file is damaged.
    """
    if not re.fullmatch(_NAME, name):
        raise ServingError(f"{name!r} is no name of a key; expected at most 64 letters, digits, '-', '_' and '.'")
    key = f"sk-slime-{secrets.token_urlsafe(32)}"
    with _locked(path):
        keys = _read(path) if path.exists() else ()
        if any(info.name == name and info.revoked is None for info in keys):
            raise ServingError(f"{path}: there is a key {name!r} already; revoke it first, or take another name")
        _write(path, (*keys, KeyInfo.of(name, key)))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Mark a key as revoked: running endpoints refuse it within about a second.

    Raises:
        ServingError: there is no such key, or the file is damaged.
    """
    with _locked(path):
        keys = _read(path)
        valid = [info.name for info in keys if info.revoked is None]
        if name not in valid:
            raise ServingError(f"{path}: no valid key is called {name!r}; there are {', '.join(valid) or 'none'}")
        now = datetime.now(UTC).replace(microsecond=0)
        revoked = [
            info.model_copy(update={"revoked": now}) if info.name == name and info.revoked is None else info
            for info in keys
        ]
        _write(path, tuple(revoked))


def list_keys(path: Path) -> list[KeyInfo]:
    """The keys of a file, revoked ones too, in the order in which they were made.

    Raises:
        ServingError: the file is damaged or there is none.
    """
    return list(_read(path))


def _from_variable(variable: str) -> tuple[KeyInfo, ...]:
    """Keys of NAME=KEY,NAME=KEY. No message shows what the variable holds."""
    keys: dict[str, KeyInfo] = {}
    for number, part in enumerate(filter(None, map(str.strip, os.environ.get(variable, "").split(","))), start=1):
        name, equals, key = (text.strip() for text in part.partition("="))
        if not equals or not re.fullmatch(_NAME, name):
            raise ServingError(f"{variable}: entry {number} is not NAME=KEY; expected NAME=KEY,NAME=KEY")
        if not key or not (key.isascii() and key.isprintable()) or " " in key:
            raise ServingError(f"{variable}: the key of {name!r} is empty or has a character that no key has")
        if name in keys:
            raise ServingError(f"{variable}: {name!r} is there twice; give each key a name of its own")
        keys[name] = KeyInfo.of(name, key)
    return tuple(keys.values())


def _read(path: Path) -> tuple[KeyInfo, ...]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        raise ServingError(f"{path}: no such file of keys; make it with `slime-ray keys add`") from None
    except OSError as error:
        raise ServingError(f"{path}: the keys cannot be read ({error.strerror})") from None
    if mode & 0o022:
        raise ServingError(f"{path}: others than its owner can write this file of keys; chmod 600 it")
    try:
        return _File.model_validate_json(content).keys
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its text"
        raise ServingError(f"{path}: damaged at {where}; restore it, or remove it and make new keys") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time: of two at once, one would undo the other, which may be a revocation."""
    with disk_errors(path, setting="keys.file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _write(path: Path, keys: tuple[KeyInfo, ...]) -> None:
    """Write the file whole or not at all, for its owner alone from its first byte."""
    path = path.resolve()  # a link stays one
    descriptor, neighbour = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_File(keys=keys).model_dump_json(indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
        flush(path.parent)
    finally:
        Path(neighbour).unlink(missing_ok=True)
