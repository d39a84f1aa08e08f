"""An issuer of OpenID Connect on loopback, with TLS: its documents, its keys, and whatever may be wrong with them.

A node that trusts it is beside it: a verifier over the guarded way out, which finds the issuer's name on loopback.
"""

import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.inproc import store, tenant
from adapters.inproc.store import InprocConfig
from adapters.token_auth import issuer as own_issuer
from adapters.token_auth.verifier import TRUSTING, TrustingConfig
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.adapter import Given
from ports.auth import TokenVerifier
from ports.tenant import Entitlements, TenantDirectory
from tests.support.egress import guarded
from tests.support.http_origin import Origin, answer, serving
from tests.support.pki import Authority, new_authority

Key = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

HOST: Final = "login.acme.example"
OWN: Final = "https://node.example"
DISCOVERY: Final = "/realms/acme/.well-known/openid-configuration"
JWKS: Final = "/realms/acme/keys"


def new_key(alg: str) -> Key:
    if alg == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if alg[:2] in ("RS", "PS"):
        return rsa.generate_private_key(65_537, 2_048)
    return Ed25519PrivateKey.generate()


def public_jwk(key: Key, alg: str, **more: object) -> dict[str, Any]:
    jwk: dict[str, Any] = pyjwt.get_algorithm_by_name(alg).to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "alg": alg, "use": "sig", **more}


@dataclass
class OidcIssuer:
    """Signs with the key that was added last, unless it is said otherwise."""

    origin: Origin
    answers: dict[str, bytes]
    authority: Authority
    clock: ManualClock
    keys: dict[str, tuple[Key, str]] = field(default_factory=dict)
    """With their algorithms, by `kid`."""

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.origin.port}/realms/acme"

    @property
    def jwks_uri(self) -> str:
        return f"https://{HOST}:{self.origin.port}{JWKS}"

    def add(self, kid: str, alg: str = "EdDSA") -> Key:
        self.keys[kid] = (new_key(alg), alg)
        self.publish()
        return self.keys[kid][0]

    def remove(self, kid: str) -> None:
        del self.keys[kid]
        self.publish()

    def publish(self, **discovery: object) -> None:
        told = {"issuer": self.url, "jwks_uri": self.jwks_uri, **discovery}
        self.answers[DISCOVERY] = answer(json.dumps(told).encode())
        entries = [public_jwk(key, alg, kid=kid) for kid, (key, alg) in self.keys.items()]
        self.answers[JWKS] = answer(json.dumps({"keys": entries}).encode())

    def fetches(self, path: str) -> int:
        return sum(request.startswith(f"GET {path} ") for request in self.origin.requests)

    def claims(self, **changed: object) -> dict[str, Any]:
        """Claims that are accepted, but for `changed`; a claim changed to `...` is left out."""
        now = int(self.clock.now().timestamp())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": "stack-a",
            "sub": "ann",
            "iat": now,
            "exp": now + 600,
            "jti": uuid.uuid4().hex,
            "org": "acme",
            "scope": "runs:read runs:create",
        } | changed
        return {name: value for name, value in claims.items() if value is not ...}

    def token(
        self, *, kid: str = "", key: Key | None = None, header: dict[str, object] | None = None, **changed: object
    ) -> str:
        kid = kid or list(self.keys)[-1]
        known, alg = self.keys.get(kid, (key, "EdDSA"))
        headers: dict[str, object] = {"kid": kid, "typ": "at+jwt", **(header or {})}
        return pyjwt.encode(self.claims(**changed), key or known, algorithm=alg, headers=headers)  # type: ignore[arg-type]


@dataclass
class TrustingNode:
    issuer: OidcIssuer
    clock: ManualClock
    tenants: TenantDirectory
    folder: Path
    open: Callable[[], Any]
    verifier: TokenVerifier

    async def trust(self, *issuers: dict[str, Any]) -> None:
        """From now on, which the verifier notices a second later."""
        write(self.folder / "issuers.json", {"issuers": list(issuers)})
        await self.clock.advance(timedelta(seconds=1))


def write(path: Path, value: object) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def trusted(issuer: OidcIssuer, **more: Any) -> dict[str, Any]:
    return {"name": "acme", "issuer": issuer.url, "tenants": {"acme": "tnt_acme"}, "tenant_claim": "org", **more}


@asynccontextmanager
async def trusting_node(folder: Path, **more: Any) -> AsyncIterator[TrustingNode]:
    """With one issuer, which has one key."""
    clock, authority = ManualClock(), new_authority(folder)
    answers: dict[str, bytes] = {}
    storage = InprocConfig(name=uuid.uuid4().hex)
    key = own_issuer.generate_key(folder / "issuer.pem")
    write(folder / "jwks.json", own_issuer.jwks(key))
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(serving(answers, tls=authority.server(HOST)))
        issuer = OidcIssuer(origin=origin, answers=answers, authority=authority, clock=clock)
        issuer.add("first")
        tenants = await stack.enter_async_context(tenant.SPEC.open(storage, Given(clock=clock)))
        stack.callback(store.drop, storage.name)
        for one in (ACME, GLOBEX):
            await tenants.create(PLATFORM, one.tenant, name=one.tenant, entitlements=Entitlements())
        egress = await stack.enter_async_context(guarded(private=[(HOST, origin.port)], ca_file=authority.file))
        write(folder / "issuers.json", {"issuers": [trusted(issuer, **more)]})
        config = TrustingConfig(
            issuer=OWN,
            audience="stack-a",
            jwks_file=str(folder / "jwks.json"),
            issuers_file=str(folder / "issuers.json"),
            cache_seconds=0,
        )
        given = Given(clock=clock, ports={"tenant": tenants, "egress": egress})
        verifier = await stack.enter_async_context(TRUSTING.open(config, given))
        yield TrustingNode(
            issuer=issuer,
            clock=clock,
            tenants=tenants,
            folder=folder,
            open=lambda: TRUSTING.open(config, given),
            verifier=verifier,
        )
