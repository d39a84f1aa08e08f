"""A service that acts for tenants: those it may, under a name of its own, no further than it may at home, and audited."""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from conformance.people import ACME, GLOBEX, PLATFORM
from ports.audit import Link, Wanted
from ports.auth import TokenVerifier
from ports.context import AuthContext
from ports.errors import PermissionDenied, Unauthenticated
from ports.ids import PrincipalId, TenantId
from ports.tenant import Principal
from stack_a.app import create_app
from tests.support.stack_a import StackA, stack_a
from tests.support.tokens import AUDIENCE, TokenNode, token_node

MEMORY = timedelta(seconds=5)
SERVICE = replace(
    ACME,
    principal=PrincipalId("svc_hub"),
    scopes=frozenset({"tenant:act_as", "runs:create", "runs:read", "audit:read", "admin:tenant", "admin:platform"}),
)
THERE = "tnt_acme/svc_hub"
ADMIN = replace(GLOBEX, principal=PrincipalId("usr_admin"), scopes=frozenset({"admin:tenant"}))


@dataclass
class Hub:
    node: TokenNode
    key: str

    @property
    def verifier(self) -> TokenVerifier:
        return self.node.verifier

    async def act(self) -> AuthContext:
        return await self.verifier.act_as(self.key, GLOBEX.tenant)

    async def bar(self, auth: AuthContext, principal: str, **more: Any) -> Principal:
        admin = replace(auth, scopes=frozenset({"admin:tenant"}))
        return await self.node.tenants.put_principal(admin, PrincipalId(principal), **{"status": "active", **more})

    async def gone(self) -> str:
        """The refusal, once the verifier has forgotten."""
        await self.node.advance(MEMORY)
        with pytest.raises((PermissionDenied, Unauthenticated)) as refusal:
            await self.act()
        return refusal.value.code


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with token_node(tmp_path) as node:
        key, _ = await node.api_key(SERVICE)
        await node.tenants.let_act(PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=SERVICE.principal)
        yield Hub(node, key)


@pytest.mark.anyio
class TestActing:
    async def test_it_is_itself_there_with_a_name_that_says_both_and_less_than_at_home(self, hub: Hub) -> None:
        auth = await hub.act()

        assert (auth.tenant, auth.principal, auth.home) == (GLOBEX.tenant, THERE, ACME.tenant)
        assert auth.actor_tenant == ACME.tenant
        assert auth.scopes == {"runs:create", "runs:read", "audit:read", "admin:tenant"}
        assert (await hub.verifier.act_as(hub.key, ACME.tenant)).scopes == SERVICE.scopes, "at home it is itself"

    async def test_who_lacks_the_scope_may_not_wherever_it_was_let(self, hub: Hub) -> None:
        plain, _ = await hub.node.api_key(replace(SERVICE, scopes=SERVICE.scopes - {"tenant:act_as"}))

        with pytest.raises(PermissionDenied):
            await hub.verifier.act_as(plain, GLOBEX.tenant)

    async def test_foreign_absent_and_impossible_tenants_are_one_refusal_and_the_last_asks_nobody(
        self, hub: Hub
    ) -> None:
        await hub.node.tenants.end_acting(
            PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=SERVICE.principal
        )
        refusals = set()
        for tenant in (GLOBEX.tenant, "tnt_nobody", "tnt_x'; --", "", "globex", "tnt_globex "):
            with pytest.raises(PermissionDenied) as refusal:
                await hub.verifier.act_as(hub.key, tenant)
            refusals.add((refusal.value.code, refusal.value.message, str(refusal.value.details)))

        assert len(refusals) == 1

    async def test_what_is_withdrawn_ends_within_five_seconds(self, hub: Hub) -> None:
        await hub.act()
        await hub.node.tenants.end_acting(
            PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=SERVICE.principal
        )

        assert await hub.gone() == "tenant_mismatch"

    async def test_the_tenant_may_bar_it_and_bound_it_by_the_name_it_has_there(self, hub: Hub) -> None:
        await hub.bar(GLOBEX, "svc_hub", status="disabled")
        await hub.node.advance(MEMORY)
        assert await hub.act(), "its namesake there is somebody else"
        await hub.bar(GLOBEX, THERE, roles=frozenset({"viewer"}), scopes=frozenset({"runs:read"}))
        await hub.node.advance(MEMORY)
        assert (await hub.act()).scopes == {"runs:read"}

        await hub.bar(GLOBEX, THERE, status="disabled")

        assert await hub.gone() == "tenant_mismatch"

    async def test_a_disabled_tenant_says_so(self, hub: Hub) -> None:
        await hub.act()
        await hub.node.tenants.set_status(PLATFORM, GLOBEX.tenant, "disabled")

        assert await hub.gone() == "tenant_disabled"

    async def test_who_is_barred_or_bounded_at_home_is_so_everywhere(self, hub: Hub) -> None:
        await hub.act()
        scopes = frozenset({"tenant:act_as", "runs:read"})
        await hub.bar(ACME, "svc_hub", roles=frozenset({"service"}), scopes=scopes)
        await hub.node.advance(MEMORY)
        assert (await hub.act()).scopes == {"runs:read"}

        await hub.bar(ACME, "svc_hub", roles=frozenset({"viewer"}), scopes=frozenset({"runs:read"}))
        assert await hub.gone() == "tenant_mismatch"
        await hub.bar(ACME, "svc_hub", status="disabled")
        assert await hub.gone() == "unauthenticated"

    async def test_a_token_minted_for_its_run_acts_as_long_as_it_may(self, hub: Hub) -> None:
        auth = await hub.act()
        token = hub.node.issuer.mint(auth, audience=AUDIENCE, scopes=auth.scopes, lifetime=timedelta(minutes=30))

        seen = await hub.verifier.verify(token)
        assert (seen.tenant, seen.principal, seen.home) == (GLOBEX.tenant, THERE, ACME.tenant)
        with pytest.raises(PermissionDenied):
            await hub.verifier.act_as(token, ACME.tenant)
        await hub.node.tenants.end_acting(
            PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=SERVICE.principal
        )
        await hub.node.advance(MEMORY)
        with pytest.raises(Unauthenticated):
            await hub.verifier.verify(token)

    async def test_what_bounds_it_at_home_bounds_the_token_of_its_run(self, hub: Hub) -> None:
        auth = await hub.act()
        token = hub.node.issuer.mint(auth, audience=AUDIENCE, scopes=auth.scopes, lifetime=timedelta(minutes=30))
        assert (await hub.verifier.verify(token)).scopes == auth.scopes

        at_home = frozenset({"tenant:act_as", "runs:read", "audit:read"})
        await hub.bar(ACME, "svc_hub", roles=frozenset({"viewer"}), scopes=at_home)
        await hub.bar(GLOBEX, THERE, roles=frozenset({"service"}), scopes=frozenset({"runs:read", "runs:create"}))
        await hub.node.advance(MEMORY)

        seen = await hub.verifier.verify(token)
        assert seen.principal == THERE
        assert (seen.scopes, seen.roles) == (frozenset({"runs:read"}), frozenset({"service"}))
        await hub.bar(ACME, "svc_hub", roles=frozenset({"viewer"}), scopes=at_home - {"tenant:act_as"})
        await hub.node.advance(MEMORY)
        with pytest.raises(Unauthenticated):
            await hub.verifier.verify(token)

    @pytest.mark.parametrize(
        "changed",
        [
            {"home": "tnt_other"},
            {"home": "acme"},
            {"home": 7},
            {"sub": "tnt_other/svc_hub"},
            {"sub": "svc_hub"},
            {"home": ""},
        ],
    )
    async def test_a_token_whose_home_and_name_disagree_is_refused(self, hub: Hub, changed: dict[str, object]) -> None:
        good = {"tenant_id": GLOBEX.tenant, "sub": THERE, "home": ACME.tenant}
        assert await hub.verifier.verify(hub.node.token(**good))

        with pytest.raises(Unauthenticated):
            pytest.fail(f"accepted as {await hub.verifier.verify(hub.node.token(**{**good, **changed}))}")

    async def test_asking_again_within_the_memory_asks_nobody(self, hub: Hub) -> None:
        await hub.act()
        asked = hub.node.directory.asked

        for _ in range(10):
            await hub.act()

        assert hub.node.directory.asked == asked


class Acting:
    """A verifier for tests: `hub` may act for GLOBEX, and whoever else for nobody."""

    def __init__(self) -> None:
        self.ended = False

    async def verify(self, token: str) -> AuthContext:
        return {"hub": SERVICE, "plain": ACME}[token]

    async def act_as(self, token: str, tenant: str, /) -> AuthContext:
        auth = await self.verify(token)
        if self.ended or tenant != GLOBEX.tenant:
            raise PermissionDenied("X-Tenant-Id differs from the token's tenant", code="tenant_mismatch")
        return auth.acting_for(TenantId(tenant))


@pytest.mark.anyio
class TestOverHttp:
    @pytest.fixture
    async def node(self) -> AsyncIterator[StackA]:
        async with stack_a() as made:
            verifier = Acting()
            made.api = dataclasses.replace(made.api, verifier=verifier)
            transport = httpx.ASGITransport(app=create_app(made.api))
            async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
                made.http = client
                yield made

    async def test_the_header_names_the_tenant_and_its_audit_names_both(self, node: StackA) -> None:
        for _ in range(3):
            answer = await node.get("/v1/me/permissions", "hub", **{"x-tenant-id": "tnt_globex"})
            assert (answer.json()["tenant_id"], answer.json()["principal"]) == ("tnt_globex", THERE)

        [link] = await self._audit(node, GLOBEX, "acting.use")

        assert link.entry is not None
        assert (link.entry.principal, link.entry.actor_tenant) == (THERE, ACME.tenant)
        assert await self._audit(node, ACME, "acting.use") == ()

    @pytest.mark.parametrize(
        ("who", "tenant"), [("plain", "tnt_globex"), ("hub", "tnt_nobody"), ("hub", "x"), ("hub", "")]
    )
    async def test_who_may_not_gets_the_same_answer_and_is_in_the_audit_at_home(
        self, node: StackA, who: str, tenant: str
    ) -> None:
        answer = await node.get("/v1/runs", who, **{"x-tenant-id": tenant, "x-correlation-id": "one"})

        told = answer.json()["error"]
        assert (answer.status_code, told["code"], told["details"]) == (403, "tenant_mismatch", {})
        assert told["message"] == "X-Tenant-Id differs from the token's tenant"
        assert len(await self._audit(node, ACME, "route.deny")) == 1

    async def test_what_the_platform_may_it_may_not_elsewhere(self, node: StackA) -> None:
        told = (await node.get("/v1/me/permissions", "hub", **{"x-tenant-id": "tnt_globex"})).json()

        assert not {"admin:platform", "tenant:act_as"} & set(told["scopes"])

    @staticmethod
    async def _audit(node: StackA, auth: AuthContext, action: str) -> tuple[Link, ...]:
        reader = replace(auth, scopes=frozenset({"audit:read"}))
        return (await node.api.audit.query(reader, auth.tenant, Wanted(action=action), limit=50)).items
