"""Access tokens made by hand, byte for byte, so that each may have one thing wrong; and a verifier that takes good ones."""

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.inproc import store, tenant
from adapters.inproc.store import InprocConfig
from adapters.token_auth import issuer, keys, verifier
from adapters.token_auth.issuer import IssuerConfig
from adapters.token_auth.verifier import VerifierConfig
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.adapter import Given
from ports.auth import TokenIssuer, TokenVerifier
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import KeyId, PrincipalId, TenantId
from ports.tenant import ApiKey, Entitlements, FoundKey, NewKey, Standing, TenantDirectory

ISSUER: Final = "https://node.example"
AUDIENCE: Final = "stack-a"

Claims = dict[str, Any]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_of(auth: AuthContext, now: datetime, **changed: object) -> Claims:
    """Claims that are accepted, but for `changed`; a claim changed to `...` is left out."""
    issued = int(now.timestamp())
    claims: Claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": auth.principal,
        "iat": issued,
        "exp": issued + 600,
        "jti": uuid.uuid4().hex,
        "tenant_id": auth.tenant,
        "namespace": auth.namespace,
        "scope": " ".join(sorted(auth.scopes)),
    } | changed
    return {name: value for name, value in claims.items() if value is not ...}


def signed(key: Ed25519PrivateKey, claims: Claims | bytes, **header: object) -> str:
    """A token with these claims, or exactly these bytes for claims, and the usual header but for `header`."""
    head = {"alg": "EdDSA", "kid": issuer.key_id(key), "typ": "at+jwt"} | header
    return signed_bytes(
        key, json.dumps({name: value for name, value in head.items() if value is not ...}).encode(), claims
    )


def signed_bytes(key: Ed25519PrivateKey, header: bytes, claims: Claims | bytes) -> str:
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signing_input = f"{base64url(header)}.{base64url(body)}"
    return f"{signing_input}.{base64url(key.sign(signing_input.encode()))}"


def signed_with_secret(secret: bytes, claims: Claims, *, kid: str) -> str:
    """HS256: what a verifier that lets the token choose would check with the public key as the secret."""
    header = json.dumps({"alg": "HS256", "kid": kid, "typ": "at+jwt"}).encode()
    signing_input = f"{base64url(header)}.{base64url(json.dumps(claims).encode())}"
    return f"{signing_input}.{base64url(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"


@dataclass
class Directory:
    """A tenant directory that can break, and counts how often it is asked."""

    inner: TenantDirectory
    broken: bool = False
    asked: int = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.broken:
            raise Unavailable("the tenant directory does not answer")

    async def standing(self, auth: AuthContext) -> Standing:
        self._ask()
        return await self.inner.standing(auth)

    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        self._ask()
        return await self.inner.acting(auth, tenant)

    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        """Not counted: nobody waits for it."""
        if self.broken:
            raise Unavailable("the tenant directory does not answer")
        await self.inner.keys_used(used)

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        self._ask()
        return await self.inner.find_key(key_id, secret_sha256)


@dataclass
class TokenNode:
    """A node's verifier and issuer over one signing key, with the tenants of ACME and GLOBEX."""

    folder: Path
    clock: ManualClock
    key: Ed25519PrivateKey
    tenants: TenantDirectory
    directory: Directory
    verifier: TokenVerifier
    issuer: TokenIssuer
    audience: str = AUDIENCE
    subject: AuthContext = field(default=ACME)

    @property
    def jwks_file(self) -> Path:
        return self.folder / "jwks.json"

    def token(self, **changed: object) -> str:
        return signed(self.key, claims_of(self.subject, self.clock.now(), **changed))

    async def api_key(
        self,
        auth: AuthContext | None = None,
        *,
        expires_at: datetime | None = None,
        scopes: frozenset[str] | None = None,
    ) -> tuple[str, ApiKey]:
        owner = auth or self.subject
        secret = keys.new_secret()
        new = NewKey(
            principal=PrincipalId(owner.principal),
            scopes=owner.scopes if scopes is None else scopes,
            secret_sha256=keys.digest(secret),
            expires_at=expires_at,
        )
        stored = await self.tenants.issue_key(owner, new)
        return keys.render("test", stored.id, secret), stored

    async def advance(self, delta: timedelta) -> None:
        await self.clock.advance(delta)


@asynccontextmanager
async def token_node(folder: Path, **config: Any) -> AsyncIterator[TokenNode]:
    clock = ManualClock()
    storage = InprocConfig(name=uuid.uuid4().hex)
    key = issuer.generate_key(folder / "issuer.pem")
    (folder / "jwks.json").write_text(json.dumps(issuer.jwks(key)))
    verifying = VerifierConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(folder / "jwks.json"), **config)
    issuing = IssuerConfig(issuer=ISSUER, private_key_file=str(folder / "issuer.pem"))
    async with tenant.SPEC.open(storage, Given(clock=clock)) as tenants:
        for one in (ACME, GLOBEX):
            await tenants.create(PLATFORM, one.tenant, name=one.tenant, entitlements=Entitlements())
        directory = Directory(tenants)
        given = Given(clock=clock, ports={"tenant": directory})
        async with verifier.SPEC.open(verifying, given) as verify, issuer.SPEC.open(issuing, given) as mint:
            yield TokenNode(
                folder=folder,
                clock=clock,
                key=key,
                tenants=tenants,
                directory=directory,
                verifier=verify,
                issuer=mint,
            )
    store.drop(storage.name)
