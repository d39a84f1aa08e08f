"""Public keys of an issuer: read from a JWKS document, which for our own issuer is a file."""

from pathlib import Path
from typing import Any, Final

import jwt
from msgspec import Struct

from adapters.token_auth.followed import MAX_BYTES, Followed, bounded
from adapters.token_auth.jwt import Keys, strict_json, usable_key
from ports.clock import Clock

MAX_KEYS: Final = 64


class _Kept(Struct, frozen=True):
    keys: Keys
    until: dict[str, int]
    """Of the keys that end: Unix seconds, by `kid`."""


class KeySet:
    """Our own issuer's keys by `kid`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        remedy = "restore it, or run 'agentos up' to write it again"
        self._file = Followed(path, lambda file: _kept(bounded(file)), clock, remedy=remedy)
        self._clock = clock

    def find(self, kid: str) -> jwt.PyJWK | None:
        """The key named `kid`. Raises `Unavailable` when the file can't be read: that is no verdict on a token."""
        kept = self._file.value()
        if kid not in kept.keys:
            # The issuer may sign with a key from the moment it is in the file.
            kept = self._file.latest()
        ends = kept.until.get(kid)
        return None if ends is not None and ends <= self._clock.now().timestamp() else kept.keys.get(kid)


def read_jwks(data: bytes) -> Keys:
    """The usable keys of a JWKS document; issuers publish others too. Raises `ValueError` when it is not one."""
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries_of(data):
        kid = entry.get("kid")
        if not isinstance(kid, str) or (key := usable_key(entry)) is None:
            continue
        if kid in keys:
            raise ValueError("two keys have the same kid")
        keys[kid] = key
    return keys


def entries_of(data: bytes) -> list[dict[str, Any]]:
    """Raises `ValueError` when it is no JWKS document, or too large for one."""
    document = strict_json(data) if len(data) <= MAX_BYTES else {}
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError("not a JWKS document")
    return [entry for entry in entries if isinstance(entry, dict)]


def ends_at(entry: dict[str, Any]) -> int | None:
    """When a key that was rotated out ends: `exp`, in Unix seconds, as OpenID Federation has it."""
    exp = entry.get("exp")
    if exp is not None and type(exp) is not int:
        raise ValueError("the exp of a key is a whole number of seconds")
    return exp


def _kept(data: bytes) -> _Kept:
    ends = ((entry.get("kid"), ends_at(entry)) for entry in entries_of(data))
    return _Kept(
        keys=read_jwks(data), until={kid: end for kid, end in ends if isinstance(kid, str) and end is not None}
    )
