"""The kit over our verifier and issuer, with a real key and the in-process tenant directory."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adapters.token_auth.issuer import key_id
from conformance.auth import AuthContract
from conformance.people import GLOBEX, PLATFORM
from ports.auth import TokenIssuer, TokenVerifier
from ports.context import AuthContext
from ports.ids import TenantId
from tests.support.tokens import TokenNode, claims_of, signed, signed_with_secret, token_node

HOUR = timedelta(hours=1)


class TokenHarness:
    def __init__(self, node: TokenNode) -> None:
        self.node = node

    @property
    def subject(self) -> AuthContext:
        return self.node.subject

    @property
    def audience(self) -> str:
        return self.node.audience

    async def open(self) -> TokenVerifier:
        return self.node.verifier

    async def good_tokens(self) -> dict[str, str]:
        return {"access token": self.node.token(), "API key": (await self.node.api_key())[0]}

    async def bad_tokens(self) -> dict[str, str]:
        node, now = self.node, int(self.node.clock.now().timestamp())
        revoked, stored = await node.api_key()
        await node.tenants.revoke_key(node.subject, stored.id)
        expired, _ = await node.api_key(expires_at=node.clock.now() - timedelta(seconds=1))
        good = claims_of(node.subject, node.clock.now())
        public = node.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {
            "expired": node.token(iat=now - 700, exp=now - 100),
            "expired key": expired,
            "not yet valid": node.token(nbf=now + 100),
            "another issuer": node.token(iss="https://elsewhere.example"),
            "another audience": node.token(aud="stack-b"),
            "unsigned": signed(node.key, good, alg="none").rpartition(".")[0] + ".",
            "another key": signed(Ed25519PrivateKey.generate(), good, kid=key_id(node.key)),
            "another algorithm": signed_with_secret(public, good, kid=key_id(node.key)),
            "revoked": revoked,
            "no subject": node.token(sub=...),
            "no tenant": node.token(tenant_id=...),
            "no expiry": node.token(exp=...),
        }

    async def tokens_claiming(self, scopes: frozenset[str]) -> dict[str, str]:
        return {
            "access token": self.node.token(scope=" ".join(sorted(scopes))),
            "API key": (await self.node.api_key(scopes=scopes))[0],
        }

    async def advance(self, delta: timedelta) -> None:
        await self.node.advance(delta)

    async def disable_tenant(self, tenant: TenantId) -> None:
        await self.node.tenants.set_status(PLATFORM, tenant, "disabled")

    async def break_storage(self) -> None:
        self.node.directory.broken = True

    async def issuer(self) -> TokenIssuer:
        return self.node.issuer

    async def acting_token(self) -> tuple[str, TenantId]:
        subject = self.subject
        await self.node.tenants.let_act(
            PLATFORM, GLOBEX.tenant, actor_tenant=subject.tenant, principal=subject.principal
        )
        token, _ = await self.node.api_key(scopes=subject.scopes | {"tenant:act_as", "admin:platform"})
        return token, GLOBEX.tenant

    async def end_acting(self, tenant: TenantId) -> None:
        who = self.subject
        await self.node.tenants.end_acting(PLATFORM, tenant, actor_tenant=who.tenant, principal=who.principal)


class TestTokenAuth(AuthContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[TokenHarness]:
        async with token_node(tmp_path) as node:
            yield TokenHarness(node)
