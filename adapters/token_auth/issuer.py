"""The node's own issuer: an Ed25519 key in a file, and tokens that live for minutes."""

import base64
import hashlib
import json
import os
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from msgspec import Struct

from adapters.token_auth.followed import Followed
from adapters.token_auth.jwt import MAX_LIFETIME_SECONDS, TYPE
from ports.adapter import AdapterSpec, Given
from ports.auth import TokenIssuer
from ports.clock import Clock
from ports.context import SCOPES, AuthContext
from ports.errors import InvalidArgument


class IssuerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    private_key_file: str
    """PEM (PKCS #8) with an Ed25519 key, readable by its owner only."""

    issuer: str
    """The `iss` of the tokens; verifiers are configured with the same."""


class IssuerCapabilities(Struct, frozen=True, kw_only=True):
    """Every issuer can do the same."""


class JwtIssuer:
    """TokenIssuer that signs with the key that is in the file now: after a rotation, with the new one."""

    def __init__(self, path: Path, issuer: str, clock: Clock) -> None:
        self._file = Followed(path, _with_id, clock, remedy="run 'agentos up' to make one")
        self._issuer = issuer
        self._clock = clock

    def mint(self, auth: AuthContext, *, audience: str, scopes: frozenset[str], lifetime: timedelta) -> str:
        seconds = int(lifetime.total_seconds())
        if not 0 < seconds <= MAX_LIFETIME_SECONDS:
            raise InvalidArgument(f"a token lives 1 to {MAX_LIFETIME_SECONDS} s, not {seconds}")
        now = int(self._clock.now().timestamp())
        claims = {
            "iss": self._issuer,
            "aud": audience,
            "sub": auth.principal,
            "iat": now,
            "exp": now + seconds,
            "jti": secrets.token_hex(16),
            "tenant_id": auth.tenant,
            "namespace": auth.namespace,
            # The node's own scopes are not in SCOPES and so never leave the process.
            "scope": " ".join(sorted(scopes & auth.scopes & SCOPES)),
            "roles": sorted(auth.roles),
            # Without these the token would widen: a region or a hop forgotten is a rule forgotten.
            "policy": msgspec.to_builtins(auth.policy),
            "via": list(auth.via),
            **({} if auth.home is None else {"home": auth.home}),
        }
        key, kid = self._file.value()
        return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": kid, "typ": TYPE})


@asynccontextmanager
async def open_issuer(config: IssuerConfig, given: Given) -> AsyncIterator[TokenIssuer]:
    path = Path(config.private_key_file)
    load_key(path)  # says best what is wrong with it
    yield JwtIssuer(path, config.issuer, given.clock)


def _with_id(path: Path) -> tuple[Ed25519PrivateKey, str]:
    key = load_key(path)
    return key, key_id(key)


def generate_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it to `path`, mode 0600. Raises `FileExistsError` rather than replace one."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private_pem(key))
    return key


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`.

    Raises:
        InvalidArgument: there is none, it is of another kind, or others than its owner may read it.
    """
    try:
        exposed = stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
        if exposed:
            raise InvalidArgument(f"{str(path)!r} is open to others; run: chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgument(f"the key {str(path)!r} can't be read as PEM; run 'agentos up' to make one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgument(f"the key {str(path)!r} is not an Ed25519 key")
    return key


def jwks(key: Ed25519PrivateKey) -> dict[str, Any]:
    """The JWKS document with the public half of `key`, for the verifiers' `jwks_file`."""
    return {"keys": [{**_public_jwk(key), "kid": key_id(key), "alg": "EdDSA", "use": "sig"}]}


def key_id(key: Ed25519PrivateKey) -> str:
    """The RFC 7638 thumbprint: a `kid` that needs no bookkeeping."""
    canonical = json.dumps(_public_jwk(key), separators=(",", ":"), sort_keys=True).encode()
    return _base64url(hashlib.sha256(canonical).digest())


def _public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


SPEC: Final = AdapterSpec(config=IssuerConfig, capabilities=lambda _config: IssuerCapabilities(), open=open_issuer)
