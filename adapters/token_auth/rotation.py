"""Which of a node's keys verify, and until when: the JWKS document before and after a rotation. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.token_auth.issuer import jwks, key_id
from adapters.token_auth.jwt import LEEWAY_SECONDS, MAX_LIFETIME_SECONDS
from adapters.token_auth.key_set import MAX_KEYS, ends_at

OVERLAP_SECONDS: Final = MAX_LIFETIME_SECONDS + 2 * LEEWAY_SECONDS
"""How long a key verifies after it was rotated out: until the last token it signed has expired."""

_PUBLIC: Final[tuple[str, ...]] = ("kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "exp")


def with_key(entries: Iterable[dict[str, Any]], key: Ed25519PrivateKey, *, now: float) -> dict[str, Any]:
    """The document in which `key` has no end, and the others stay that haven't ended."""
    others = [one for one in living(entries, now=now) if one.get("kid") != key_id(key)]
    # Whoever rotates so often has waited for none to end.
    return {"keys": [*jwks(key)["keys"], *others[: MAX_KEYS - 1]]}


def ending(entries: Iterable[dict[str, Any]], *, now: float) -> list[dict[str, Any]]:
    """The same keys, each with an end by which all that it signed has expired."""
    end = int(now) + OVERLAP_SECONDS
    return [{**one, "exp": min(end, ends_at(one) or end)} for one in living(entries, now=now)]


def living(entries: Iterable[dict[str, Any]], *, now: float) -> list[dict[str, Any]]:
    """What may be published of the keys that verify."""
    shown = ({name: one[name] for name in _PUBLIC if name in one} for one in entries)
    return [one for one in shown if (ends_at(one) or now + 1) > now]
