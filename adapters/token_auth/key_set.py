"""The issuer's public keys, from a JWKS file that may change while we run."""

import json
from pathlib import Path
from typing import Final

import jwt

from adapters.token_auth.jwt import Keys, usable_key
from ports.clock import Clock
from ports.errors import Unavailable

# A key taken out of the file must stop verifying as fast as a key revoked in the directory.
_LOOK_EVERY_SECONDS: Final = 1.0
_MAX_BYTES: Final = 256 * 1024


class KeySet:
    """Keys by `kid`, read again when the file has changed."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._keys: Keys = {}
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at: float | None = None

    def find(self, kid: str) -> jwt.PyJWK | None:
        """The key named `kid`. Raises `Unavailable` when the file can't be read: that is no verdict on a token."""
        now = self._clock.monotonic()
        if self._looked_at is None or now - self._looked_at >= _LOOK_EVERY_SECONDS:
            self._look()
            self._looked_at = now
        return self._keys.get(kid)

    def _look(self) -> None:
        try:
            status = self._path.stat()
            # The inode too: a file that was replaced within the clock's grain has another one.
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._keys = read_jwks(self._path.read_bytes())
                self._stamp = stamp
        except (OSError, ValueError, RecursionError) as error:
            raise Unavailable(
                f"the key set {str(self._path)!r} can't be read; restore it, or run 'agentos up' to write it again"
            ) from error


def read_jwks(data: bytes) -> Keys:
    """The usable keys of a JWKS document; issuers publish others too. Raises `ValueError` when it is not one."""
    document = json.loads(data) if len(data) <= _MAX_BYTES else None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWKS document")  # noqa: TRY004  # one kind of error for all that is malformed
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if not isinstance(kid, str) or (key := usable_key(entry)) is None:
            continue
        if kid in keys:
            raise ValueError("two keys have the same kid")
        keys[kid] = key
    return keys
