"""The node's signing key and the keys that verify: two files, rotated so that no moment is without both halves.

The public half is there before anything is signed with it: verifiers look into the file again for a key they don't know.
"""

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from adapters.token_auth.followed import bounded
from adapters.token_auth.issuer import key_id, load_key, private_pem
from adapters.token_auth.key_set import entries_of
from adapters.token_auth.rotation import ending, with_key
from deploy import credentials
from deploy.node import Node, write_private
from ports.errors import Unavailable


class Verifies(Struct, frozen=True, kw_only=True):
    kid: str
    until: int | None
    """Unix seconds; None for the one that signs."""


class Rotated(Struct, frozen=True, kw_only=True):
    kid: str
    keys: tuple[Verifies, ...]


def published(node: Node) -> list[dict[str, Any]]:
    """The entries of the node's key set; none where it can't be read, as it is made anew from the signing key."""
    try:
        return entries_of(bounded(node.secret(credentials.JWKS)))
    except (OSError, ValueError, RecursionError):
        return []


def rotate(node: Node, *, revoke: bool, now: float) -> Rotated:
    """Sign with a new key from now on. The old ones verify until what they signed has expired, or not any more.

    The caller holds the node's lock.

    Raises:
        Unavailable: there is no node.
    """
    path = node.secret(credentials.ISSUER_KEY)
    if not path.exists():
        raise Unavailable(f"there is no node at {node.home}; start one with ./agentos up")
    old, new = load_key(path), Ed25519PrivateKey.generate()
    known = [*with_key(published(node), old, now=now)["keys"]]
    document = with_key(ending(known, now=now), new, now=now)
    _publish(node, document)
    _replace(node, new)
    if revoke:
        # Last: what was signed meanwhile with the old one is refused too.
        document = with_key((), new, now=now)
        _publish(node, document)
    keys = tuple(Verifies(kid=one["kid"], until=one.get("exp")) for one in document["keys"])
    return Rotated(kid=key_id(new), keys=keys)


def _publish(node: Node, document: dict[str, Any]) -> None:
    write_private(node.secret(credentials.JWKS), msgspec.json.encode(document).decode())


def _replace(node: Node, key: Ed25519PrivateKey) -> None:
    write_private(node.secret(credentials.ISSUER_KEY), private_pem(key).decode("ascii"))
