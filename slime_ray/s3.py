"""S3, and whatever speaks its protocol, as fsspec sees it: what may pass is waited out, the rest is one sentence.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on), as botocore reads
them. `storage` has fsspec take this class for s3:// in every process; s3fs's own retries are short and stay as they
are, for an answer that breaks off in its middle.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import s3fs.core
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from slime_ray.errors import StorageError

# How long storage that does not answer is waited for: a restart of a server, a network that is reconfigured.
PATIENCE_S = 120.0
# The same for storage that has not answered this process yet: most likely its address is wrong.
FIRST_PATIENCE_S = 5.0
_BETWEEN_S = 1.0

# What befalls a connection.
_BROKEN = (*s3fs.core.S3_RETRYABLE_ERRORS, ConnectionError)
# Codes that are not 5xx and say: once more.
_AGAIN = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "Throttling"}

# Statuses that callers ask for: no such file, one that is there already or has changed, a range beyond its end.
_TOLD = {404, 409, 412, 416}

_patience: ContextVar[float | None] = ContextVar("patience", default=None)


class S3Files(S3FileSystem):
    """s3fs's file system with patience, without folders, and without answers that hide a failure."""

    # Until it answers again; a command that ends then does not wait long with each of its last words.
    _gave_up = False
    _away_since: float | None = None

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        """Options of botocore, whose own retries would multiply ours."""
        return {"retries": {"total_max_attempts": 1}, **super()._prepare_config_kwargs()}

    async def _call_s3(self, method: str, *options: Any, **arguments: Any) -> Any:
        """Every request goes through here."""
        place = f"{arguments.get('Bucket', '')}/{arguments.get('Key') or arguments.get('Prefix') or ''}"

        async def call() -> Any:
            try:
                return await super(S3Files, self)._call_s3(method, *options, **arguments)
            except FileNotFoundError as error:
                if method == "head_bucket" or _code(error) == "NoSuchBucket":
                    raise StorageError(f"s3://{arguments['Bucket']}: there is no such bucket; make it") from None
                if method == "complete_multipart_upload" and await self._is_complete(arguments):
                    return {}  # it was, and its answer was lost
                raise
            except OSError as error:
                # s3fs sees that a file is there already by an element of the answer that not every server sends.
                if arguments.get("IfNoneMatch") and _status(error) == 412:
                    raise FileExistsError(errno.EEXIST, "is there already", place) from error.__cause__
                raise

        return await self._patiently(place, call)

    call_s3 = sync_wrapper(_call_s3)

    async def _is_complete(self, upload: dict[str, Any]) -> bool:
        """Whether an object is what an upload in parts that is not known any more would have made."""
        found = await self._call_s3("head_object", Bucket=upload["Bucket"], Key=upload["Key"])
        parts = [bytes.fromhex(part["ETag"].strip('"')) for part in upload["MultipartUpload"]["Parts"]]
        return found["ETag"].strip('"') == f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"

    async def _cat_file(self, path: str, *positions: Any, **options: Any) -> Any:
        return await self._patiently(path, lambda: S3FileSystem._cat_file(self, path, *positions, **options))

    async def _get_file(self, rpath: str, lpath: str, *positions: Any, **options: Any) -> None:
        await self._patiently(rpath, lambda: S3FileSystem._get_file(self, rpath, lpath, *positions, **options))

    async def _isfile(self, path: str) -> bool:
        """As fsspec's, where any failure is a no."""
        try:
            return (await self._info(path))["type"] == "file"
        except FileNotFoundError:
            return False

    async def _mkdir(self, path: str, *_: Any, **__: Any) -> None:
        """There are no folders to be made, and no bucket is made by the way."""

    mkdir = sync_wrapper(_mkdir)

    async def _patiently(self, place: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Do something until it succeeds, fails for good, or has failed for too long.

        Raises:
            StorageError: it did.
        """
        began = time.monotonic()
        while True:
            try:
                found = await call()
            except (OSError, BotoCoreError, ClientError, ValueError, *_BROKEN) as error:
                where = f"s3://{place.rstrip('/')}"
                if (mistake := self._mistake(error)) is not None:
                    raise StorageError(f"{where}: {mistake}") from None
                if not _may_pass(error):
                    self._answered()
                    raise
                self._away_since = self._away_since or began
                now, first = time.monotonic(), _patience.get()
                if now - began > (first or (FIRST_PATIENCE_S if self._gave_up else PATIENCE_S)):
                    self._gave_up = True
                    advice = (
                        "what was finished is kept, the same command goes on"
                        if first is None
                        else "look at it, at AWS_ENDPOINT_URL and at the network"
                    )
                    raise StorageError(
                        f"{where}: {self._server()} did not answer for {now - self._away_since:.0f} s "
                        f"({_words(error)}); {advice}"
                    ) from None
            else:
                self._answered()
                return found
            await asyncio.sleep(_BETWEEN_S)

    def _answered(self) -> None:
        self._gave_up, self._away_since = False, None

    def _mistake(self, error: Exception) -> str | None:
        """What the user has to mend, if it is that; no credential is ever in it."""
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
            return "AWS_ENDPOINT_URL is no address; expected one such as http://host:9000"
        if isinstance(error, PermissionError):
            return (
                f"{self._server()} refuses access ({_code(error) or 'AccessDenied'}); see that the credentials in the "
                "environment are right and may list, read, write and delete here"
            )
        if isinstance(error, SSLError):
            return f"the certificate of {self._server()} is refused; set AWS_CA_BUNDLE to the one that signed it"
        if isinstance(error, BotoCoreError) and not isinstance(error, _BROKEN):
            return " ".join(str(error).split())
        if _status(error) in (301, 307):
            return "the bucket is in another region; set AWS_DEFAULT_REGION"
        if _status(error) >= 400 and _status(error) not in _TOLD and not _may_pass(error):
            return f"{self._server()} refuses the request ({_code(error) or _status(error)})"
        return None

    def _server(self) -> str:
        """Who is asked: the endpoint without what else may stand in its address."""
        endpoint = getattr(getattr(self._s3, "meta", None), "endpoint_url", None)
        address = urlsplit(endpoint or "")
        port = f":{address.port}" if address.port else ""
        return f"{address.scheme}://{address.hostname}{port}" if address.hostname else "S3"


@contextmanager
def first_contact() -> Iterator[None]:
    """Inside, storage that does not answer is told of after seconds."""
    token = _patience.set(FIRST_PATIENCE_S)
    try:
        yield
    finally:
        _patience.reset(token)


def _response(error: BaseException) -> dict[str, Any]:
    """What the server said, where the error comes from an answer."""
    said = error if isinstance(error, ClientError) else error.__cause__
    return dict(said.response) if isinstance(said, ClientError) else {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, _BROKEN) or _status(error) == 429 or _status(error) >= 500 or _code(error) in _AGAIN


def _words(error: Exception) -> str:
    """What failed, in a word or two: messages have addresses in them."""
    return f"HTTP {status}" if (status := _status(error)) else type(error).__name__
