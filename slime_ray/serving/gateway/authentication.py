"""Who asks: an API key, or, where none is set, this machine alone."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from slime_ray.serving.gateway.keys import Keys, KeysUnavailableError, is_loopback
from slime_ray.serving.gateway.limits import RETRY_AFTER_S
from slime_ray.serving.gateway.record import record_of
from slime_ray.serving.gateway.refusal import Refusal

# A longer one is no key of anyone's, and would be hashed once for each key.
_LONGEST = 1024
_BEARER = re.compile(rb"(?i:bearer) +([\x21-\x7e]+) *")
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*))(?::\d*)?")


class Authenticating:
    """Lets a request pass with a key; without keys, from this machine. The health is for anyone."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            Refusal: 401 without a right key, 503 where keys cannot be checked, 403 from elsewhere without keys.
        """
        record = record_of(scope)
        if not record.for_health:
            if self.keys.required:
                record.key = self._name(scope)
            else:
                _check_local(scope)
        await self.app(scope, receive, send)

    def _name(self, scope: Scope) -> str:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        challenge = {"www-authenticate": "Bearer"}
        if not given:
            message = "no API key was given; send it as 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key", headers=challenge)
        key = bearer(given[0]) if len(given) == 1 else None
        if key is None:
            message = "expected one header 'Authorization: Bearer KEY'"
            raise Refusal(401, message, code="invalid_api_key", headers=challenge)
        try:
            name = self.keys.name_of(key)
        except KeysUnavailableError:
            again = {"retry-after": str(RETRY_AFTER_S)}
            message = "API keys cannot be checked at the moment; try again"
            raise Refusal(503, message, code="keys_unavailable", headers=again) from None
        if name is None:
            raise Refusal(401, "this API key is unknown or revoked", code="invalid_api_key", headers=challenge)
        return name


def bearer(value: bytes) -> str | None:
    """The key in an Authorization header; None where it holds none that could be one."""
    found = _BEARER.fullmatch(value) if len(value) <= _LONGEST else None
    return None if found is None else found[1].decode("ascii")


def _check_local(scope: Scope) -> None:
    """Refuse other machines, and pages of other sites in a browser on this one (their Host is another's name)."""
    client = scope.get("client")
    if client is None or not is_loopback(client[0]):
        raise Refusal(403, "without an API key this server answers its own machine alone", code="not_local")
    for name, value in scope["headers"]:
        if name == b"host":
            found = _HOST.fullmatch(value)
            if found is None or not is_loopback((found[1] or found[2]).decode("latin-1").lower()):
                message = "without an API key this server is called 127.0.0.1 or localhost, and no other name"
                raise Refusal(403, message, code="not_local")
