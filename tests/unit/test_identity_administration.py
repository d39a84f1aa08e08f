"""Principals and keys over the admin API: platform only, a secret once, and what is said is what the door goes by."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from adapters.inproc import store, tenant
from adapters.inproc.store import InprocConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import keys
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.administration.identity import part
from deploy.administration.identity_routes import ROUTES
from ports.adapter import Given
from ports.errors import NotFound
from ports.ids import KeyId, PrincipalId, TenantId
from ports.roles import ROLES
from ports.tenant import Entitlements, FoundKey, TenantDirectory
from tests.support.admin import Admin, admin

pytestmark = pytest.mark.anyio

URL = f"/v1/admin/tenants/{ACME.tenant}"
OTHER = f"/v1/admin/tenants/{GLOBEX.tenant}"
ADMIN = replace(ACME, scopes=frozenset({"admin:tenant"}))


@pytest.fixture
async def tenants() -> AsyncIterator[TenantDirectory]:
    config = InprocConfig(name=uuid.uuid4().hex)
    async with tenant.SPEC.open(config, Given(clock=SystemClock())) as opened:
        for one in (ACME, GLOBEX):
            await opened.create(PLATFORM, one.tenant, name="", entitlements=Entitlements())
        yield opened
    store.drop(config.name)


@pytest.fixture
async def node(tenants: TenantDirectory) -> AsyncIterator[Admin]:
    async with admin(more=(part(tenants, env="test"),)) as opened:
        yield opened


async def found(tenants: TenantDirectory, api_key: str) -> FoundKey | None:
    parsed = keys.parse(api_key)
    assert parsed is not None
    return await tenants.find_key(parsed.key_id, keys.digest(parsed.secret))


async def issued(node: Admin, **body: Any) -> Any:
    answer = await node.send("POST", URL + "/keys", {"principal": "svc_a", "role": "viewer", **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


class TestKeys:
    async def test_an_issued_key_opens_what_was_said_and_its_secret_is_shown_once(
        self, node: Admin, tenants: TenantDirectory
    ) -> None:
        made = await issued(node, label="ci", namespace="lab", expires_in_days=1)

        key = await found(tenants, made["api_key"])
        assert key is not None
        assert (key.key.tenant, key.key.principal, key.key.namespace) == (ACME.tenant, "svc_a", "lab")
        assert (key.key.scopes, key.key.roles) == (ROLES["viewer"], frozenset({"viewer"}))
        assert key.key.expires_at is not None
        assert timedelta(hours=23) < key.key.expires_at - datetime.now(UTC) < timedelta(hours=25)
        listed = await node.send("GET", URL + "/keys")
        [line] = listed.json()["items"]
        assert line == made["key"]
        assert made["api_key"].rpartition("_")[2] not in listed.text

    async def test_scopes_stand_instead_of_a_role(self, node: Admin) -> None:
        made = await issued(node, role=None, scopes=["tenant:act_as", "runs:read"])

        assert (made["key"]["roles"], made["key"]["scopes"]) == ([], ["runs:read", "tenant:act_as"])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"role": None}, {"scopes": ["runs:read"]}, {"role": "king"}, {"role": None, "scopes": ["queue:any-tenant"]},
            {"principal": "tnt_x/svc"}, {"principal": "acme:ann"}, {"principal": ""}, {"principal": "a\nb"},
            {"namespace": "../x"}, {"label": "x" * 201},
            {"expires_in_days": 0}, {"expires_in_days": 99_999}, {"unknown": 1}, {"principal": None},
        ],
    )  # fmt: skip
    async def test_nonsense_is_told_by_its_place_and_makes_no_key(self, node: Admin, wrong: dict[str, Any]) -> None:
        answer = await node.send("POST", URL + "/keys", {"principal": "svc_a", "role": "viewer", **wrong})

        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")
        assert (await node.send("GET", URL + "/keys")).json()["items"] == []

    async def test_a_repeat_makes_no_second_key_and_names_the_first(self, node: Admin) -> None:
        body = {"principal": "svc_a", "role": "viewer"}
        first = (await node.send("POST", URL + "/keys", body, idempotency_key="once")).json()

        again = await node.send("POST", URL + "/keys", body, idempotency_key="once")

        assert (again.status_code, again.json()["error"]["details"]) == (409, {"key_id": first["key"]["id"]})
        assert len((await node.send("GET", URL + "/keys")).json()["items"]) == 1

    @pytest.mark.parametrize("verb", ["issue", "rotate"])
    async def test_of_two_requests_at_once_with_one_idempotency_key_one_makes_a_key(
        self, node: Admin, tenants: TenantDirectory, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        old = await issued(node)
        where = {"issue": URL + "/keys", "rotate": f"{URL}/keys/{old['key']['id']}:rotate"}[verb]
        body = {"issue": {"principal": "svc_a", "role": "viewer"}, "rotate": {"grace_minutes": 60}}[verb]
        storing = getattr(tenants, f"{verb}_key")

        async def slow(*given: Any, **more: Any) -> Any:
            for _ in range(20):
                await checkpoint()
            return await storing(*given, **more)

        monkeypatch.setattr(tenants, f"{verb}_key", slow)
        answers = []

        async def ask() -> None:
            answers.append(await node.send("POST", where, body, idempotency_key="once"))

        async with create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)

        assert sorted(answer.status_code for answer in answers) == [201, 409]
        assert len((await node.send("GET", URL + "/keys")).json()["items"]) == 2

    async def test_a_rotated_key_and_its_successor_overlap(self, node: Admin, tenants: TenantDirectory) -> None:
        old = await issued(node)

        answer = await node.send("POST", f"{URL}/keys/{old['key']['id']}:rotate", {"grace_minutes": 60})

        new = answer.json()
        assert answer.status_code == 201
        assert await found(tenants, old["api_key"]) is not None
        assert await found(tenants, new["api_key"]) is not None
        ended = await node.send("POST", f"{URL}/keys/{new['key']['id']}:rotate", {"grace_minutes": 0})
        assert ended.status_code == 201
        assert await found(tenants, new["api_key"]) is None

    async def test_a_revoked_key_opens_nothing_and_is_revoked_once_more_without_a_word(
        self, node: Admin, tenants: TenantDirectory
    ) -> None:
        made = await issued(node)

        for _ in range(2):
            answer = await node.send("POST", f"{URL}/keys/{made['key']['id']}:revoke", {})
            assert (answer.status_code, answer.json()["revoked"]) == (200, made["key"]["id"])

        assert await found(tenants, made["api_key"]) is None
        refused = await node.send("POST", f"{URL}/keys/{made['key']['id']}:rotate", {})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")

    @pytest.mark.parametrize("verb", ["rotate", "revoke"])
    async def test_a_foreign_key_and_one_that_there_is_not_are_the_same(
        self, node: Admin, tenants: TenantDirectory, verb: str
    ) -> None:
        made = await issued(node)
        ids = [made["key"]["id"], KeyId("key_" + "0" * 32), "key_x", "run_" + "0" * 32]

        answers = [await node.send("POST", f"{OTHER}/keys/{one}:{verb}", {}, x_correlation_id="c") for one in ids]

        assert {answer.status_code for answer in answers} == {404}
        texts = {answer.text.replace(one, "…") for answer, one in zip(answers, ids, strict=True)}
        assert len(texts) == 1
        assert await found(tenants, made["api_key"]) is not None

    async def test_a_listing_comes_in_pages(self, node: Admin) -> None:
        made = [(await issued(node))["key"]["id"] for _ in range(3)]

        first = (await node.send("GET", URL + "/keys?limit=2")).json()
        rest = (await node.send("GET", f"{URL}/keys?limit=2&cursor={first['next_cursor']}")).json()

        assert [one["id"] for one in (*first["items"], *rest["items"])] == sorted(made)
        assert rest["next_cursor"] is None


class TestPrincipals:
    async def test_a_principal_is_barred_bounded_and_shown(self, node: Admin, tenants: TenantDirectory) -> None:
        put = await node.send(
            "PUT", URL + "/principals", {"principal": "tnt_hub/svc_hub", "status": "disabled", "roles": ["viewer"]}
        )

        assert put.status_code == 200, put.text
        kept = await tenants.get_principal(ADMIN, PrincipalId("tnt_hub/svc_hub"))
        assert (kept.status, kept.roles, kept.scopes) == ("disabled", frozenset({"viewer"}), ROLES["viewer"])
        [line] = (await node.send("GET", URL + "/principals")).json()["items"]
        assert (line["id"], line["roles"]) == ("tnt_hub/svc_hub", ["viewer"])
        assert (await node.send("GET", OTHER + "/principals")).json()["items"] == []

    @pytest.mark.parametrize(
        "wrong",
        [
            {"principal": "x/svc"}, {"principal": "tnt_a/"}, {"principal": "tnt_a/b/c"}, {"principal": ""},
            {"status": "gone"}, {"roles": ["king"]}, {"roles": "viewer"}, {"x": 1},
        ],
    )  # fmt: skip
    async def test_nonsense_is_told_by_its_place(self, node: Admin, wrong: dict[str, Any]) -> None:
        answer = await node.send("PUT", URL + "/principals", {"principal": "svc_a", **wrong})

        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")

    async def test_who_may_act_for_a_tenant_is_said_and_unsaid(self, node: Admin, tenants: TenantDirectory) -> None:
        actor = replace(GLOBEX, principal=PrincipalId("svc_hub"))
        body = {"actor_tenant": GLOBEX.tenant, "principal": "svc_hub", "allowed": True}

        said = (await node.send("PUT", URL + "/acting", body)).json()["items"]
        assert [(one["actor_tenant"], one["principal"]) for one in said] == [(GLOBEX.tenant, "svc_hub")]
        assert (await tenants.acting(actor, ACME.tenant)).tenant_status == "active"
        assert (await node.send("GET", URL + "/acting")).json()["items"] == said

        assert (await node.send("PUT", URL + "/acting", {**body, "allowed": False})).json()["items"] == []

    async def test_nobody_of_a_tenant_that_there_is_not_is_let_act(self, node: Admin, tenants: TenantDirectory) -> None:
        body = {"actor_tenant": "tnt_later", "principal": "svc_hub", "allowed": True}

        answer = await node.send("PUT", URL + "/acting", body)

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await node.send("GET", URL + "/acting")).json()["items"] == []
        later = TenantId("tnt_later")
        await tenants.create(PLATFORM, later, name="", entitlements=Entitlements())
        with pytest.raises(NotFound):
            await tenants.acting(replace(ACME, tenant=later, principal=PrincipalId("svc_hub")), ACME.tenant)
        assert (
            await node.send("PUT", URL + "/acting", {**body, "actor_tenant": "tnt_none", "allowed": False})
        ).is_success

    @pytest.mark.parametrize("wrong", [{"actor_tenant": "x"}, {"actor_tenant": ACME.tenant}, {"principal": "a/b"}])
    async def test_who_can_not_act_is_refused(self, node: Admin, wrong: dict[str, Any]) -> None:
        body = {"actor_tenant": GLOBEX.tenant, "principal": "svc_hub", "allowed": True, **wrong}

        assert (await node.send("PUT", URL + "/acting", body)).status_code in {400, 422}


async def test_nobody_but_the_platform_gets_in_and_learns_which_scope_it_lacks(node: Admin) -> None:
    for route in ROUTES:
        path = route.template.format(tenant_id=ACME.tenant, key_id="key_" + "0" * 32)
        answer = await node.send(route.method, path, None if route.method == "GET" else {}, who="tenant_admin")

        assert (answer.status_code, answer.json()["error"]["details"]) == (403, {"required_scope": "admin:platform"})


async def test_a_tenant_that_there_is_not_is_not_found(node: Admin) -> None:
    for tenant_id in ("tnt_nobody", "x", "tnt_'; --"):
        for path in ("keys", "principals", "acting"):
            assert (await node.send("GET", f"/v1/admin/tenants/{tenant_id}/{path}")).status_code == 404


async def test_the_caller_is_told_what_it_may_here(node: Admin) -> None:
    told = (await node.send("GET", "/v1/me/permissions")).json()
    theirs = (await node.send("GET", "/v1/me/permissions", who="user")).json()

    assert all(route["allowed"] for route in told["routes"] if route["required_scope"] == "admin:platform")
    assert not any(route["allowed"] for route in theirs["routes"] if route["required_scope"] == "admin:platform")
