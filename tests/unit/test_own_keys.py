"""A tenant's own keys over the admin API: its own, of its namespace, and never more than whoever hands them out."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adapters.inproc import store, tenant
from adapters.inproc.store import InprocConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import keys
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.administration import own_keys
from ports import tenant as directory
from ports.adapter import Given
from ports.context import SCOPES
from ports.ids import KeyId, PrincipalId
from ports.roles import ROLES
from ports.tenant import Entitlements, NewKey, TenantDirectory
from tests.support.admin import CALLERS, Admin, admin

pytestmark = pytest.mark.anyio

URL = own_keys.KEYS
VIEWER = {"principal": "svc_a", "role": "viewer"}


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
    async with admin(more=(own_keys.part(tenants, env="test"),)) as opened:
        yield opened


async def issued(node: Admin, who: str = "tenant_admin", **body: Any) -> Any:
    answer = await node.send("POST", URL, {**VIEWER, **body}, who=who)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def wide(tenants: TenantDirectory, scopes: frozenset[str] = SCOPES) -> KeyId:
    """As the platform issues one, in the namespace of the tenant's administrator."""
    new = NewKey(principal=PrincipalId("svc_wide"), scopes=scopes, secret_sha256=bytes(32))
    return (await tenants.issue_key(CALLERS["tenant_admin"], new)).id


async def of(node: Admin, who: str = "tenant_admin") -> list[str]:
    return [one["id"] for one in (await node.send("GET", URL, who=who)).json()["items"]]


async def test_an_own_key_opens_what_was_said_and_its_secret_is_shown_once(
    node: Admin, tenants: TenantDirectory
) -> None:
    made = await issued(node, label="ci", expires_in_days=1)

    parsed = keys.parse(made["api_key"])
    assert parsed is not None
    found = await tenants.find_key(parsed.key_id, keys.digest(parsed.secret))
    assert found is not None
    assert (found.key.tenant, found.key.namespace, found.key.scopes) == (ACME.tenant, ACME.namespace, ROLES["viewer"])
    listed = await node.send("GET", URL, who="tenant_admin")
    assert listed.json()["items"] == [made["key"]]
    assert parsed.secret not in listed.text


@pytest.mark.parametrize("who", ["user", "viewer", ""])
async def test_nobody_else_may(node: Admin, tenants: TenantDirectory, who: str) -> None:
    key = await wide(tenants, frozenset())

    answers = [
        await node.send("GET", URL, who=who),
        await node.send("POST", URL, VIEWER, who=who),
        await node.send("POST", f"{URL}/{key}:rotate", {}, who=who),
        await node.send("POST", f"{URL}/{key}:revoke", {}, who=who),
    ]

    assert [one.status_code for one in answers] == [403 if who else 401] * 4
    assert await of(node) == [key]
    assert (await tenants.get_key(CALLERS["tenant_admin"], key)).revoked_at is None


@pytest.mark.parametrize(
    ("who", "body", "beyond"),
    [
        ("tenant_admin", {"role": "platform_admin"}, "admin:platform"),
        ("tenant_admin", {"role": None, "scopes": ["admin:platform"]}, "admin:platform"),
        ("tenant_admin", {"role": None, "scopes": ["runs:read", "tenant:act_as"]}, "tenant:act_as"),
        ("narrow_admin", {"role": "editor"}, "agents:read"),
        ("narrow_admin", {"role": "tenant_admin"}, "agents:read"),
        ("narrow_admin", {"role": None, "scopes": ["audit:read"]}, "audit:read"),
        # Whoever has them from the platform does not hand them out here.
        ("everything", {"role": "platform_admin"}, "admin:platform"),
        ("everything", {"role": None, "scopes": ["tenant:act_as"]}, "tenant:act_as"),
    ],
)
async def test_nobody_hands_out_more_than_they_may_do(node: Admin, who: str, body: dict[str, Any], beyond: str) -> None:
    refused = await node.send("POST", URL, {**VIEWER, **body}, who=who)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    assert refused.json()["error"]["details"] == {"required_scope": beyond}
    assert await of(node, who) == []
    assert (await issued(node, "narrow_admin", role=None, scopes=["runs:read"]))["key"]["scopes"] == ["runs:read"]


async def test_nobody_gets_the_secret_of_a_successor_that_may_more(node: Admin, tenants: TenantDirectory) -> None:
    for scopes in (SCOPES, frozenset({"audit:read"}), frozenset({"admin:platform"})):
        key = await wide(tenants, scopes)
        before = await of(node)

        refused = await node.send("POST", f"{URL}/{key}:rotate", {}, who="narrow_admin")

        assert (refused.status_code, "api_key" in refused.text) == (403, False)
        assert await of(node) == before
        assert (await tenants.get_key(CALLERS["tenant_admin"], key)).expires_at is None


async def test_a_key_is_rotated_with_overlap_and_revoked(node: Admin, tenants: TenantDirectory) -> None:
    old = await issued(node)

    new = await node.send("POST", f"{URL}/{old['key']['id']}:rotate", {"grace_minutes": 60}, who="tenant_admin")
    ended = await node.send("POST", f"{URL}/{new.json()['key']['id']}:revoke", {}, who="tenant_admin")
    again = await node.send("POST", f"{URL}/{new.json()['key']['id']}:revoke", {}, who="tenant_admin")

    assert (new.status_code, ended.status_code, again.status_code) == (201, 200, 200)
    lines = {one["id"]: one for one in (await node.send("GET", URL, who="tenant_admin")).json()["items"]}
    assert lines[old["key"]["id"]]["expires_at"] is not None
    assert lines[new.json()["key"]["id"]]["revoked_at"] is not None
    parsed = keys.parse(old["api_key"])
    assert parsed is not None
    assert await tenants.find_key(parsed.key_id, keys.digest(parsed.secret)) is not None


@pytest.mark.parametrize("who", ["globex_admin", "lab_admin"], ids=["of another tenant", "of another namespace"])
async def test_foreign_equals_absent(node: Admin, who: str) -> None:
    made = (await issued(node))["key"]["id"]
    absent = "key_" + "0" * 32
    for verb in ("rotate", "revoke"):
        answers = [await node.send("POST", f"{URL}/{key}:{verb}", {}, who=who) for key in (made, absent, "key_x")]
        assert [one.status_code for one in answers] == [404] * 3
        texts = {
            one.text.replace(key, "").replace(one.json()["error"]["correlation_id"], "")
            for one, key in zip(answers, (made, absent, "key_x"), strict=True)
        }
        assert len(texts) == 1, "one answer for all that is not there"

    assert await of(node, who) == []
    assert (await node.send("GET", URL, who="tenant_admin")).json()["items"][0]["revoked_at"] is None
    own = await issued(node, who)
    assert own["key"]["namespace"] == CALLERS[who].namespace
    assert await of(node, who) == [own["key"]["id"]]
    assert await of(node) == [made]


async def test_a_namespace_is_not_to_be_chosen(node: Admin) -> None:
    refused = await node.send("POST", URL, {**VIEWER, "namespace": "lab"}, who="tenant_admin")

    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_failed")


async def test_who_acts_for_a_tenant_leaves_no_keys_behind(node: Admin, tenants: TenantDirectory) -> None:
    key = await wide(tenants, frozenset())

    answers = [
        await node.send("GET", URL, who="guest"),
        await node.send("POST", URL, VIEWER, who="guest"),
        await node.send("POST", f"{URL}/{key}:rotate", {}, who="guest"),
        await node.send("POST", f"{URL}/{key}:revoke", {}, who="guest"),
    ]

    assert "admin:tenant" in CALLERS["guest"].scopes
    assert [one.status_code for one in answers] == [403] * 4
    assert await of(node) == [key]


async def test_whose_credential_bounds_where_data_may_go_makes_no_key_without_that_bound(node: Admin) -> None:
    refused = await node.send("POST", URL, VIEWER, who="bound_admin")

    assert refused.status_code == 403
    assert await of(node) == []


async def test_pages_are_of_the_callers_namespace_alone(node: Admin) -> None:
    mine = [(await issued(node))["key"]["id"] for _ in range(3)]
    for _ in range(3):
        await issued(node, "lab_admin")

    found: list[str] = []
    cursor = ""
    while True:
        page = (await node.send("GET", f"{URL}?limit=2{cursor}", who="tenant_admin")).json()
        found += [one["id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == sorted(mine)


async def test_a_repeat_makes_no_second_key(node: Admin) -> None:
    first = await node.send("POST", URL, VIEWER, who="tenant_admin", idempotency_key="once")
    again = await node.send("POST", URL, VIEWER, who="tenant_admin", idempotency_key="once")
    others = await node.send("POST", URL, VIEWER, who="globex_admin", idempotency_key="once")

    assert (first.status_code, again.status_code, others.status_code) == (201, 409, 201)
    assert again.json()["error"]["details"] == {"key_id": first.json()["key"]["id"]}
    assert len(await of(node)) == 1


async def test_there_is_a_limit_of_keys_in_force(node: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant, "MAX_KEYS", 2)
    first, _ = [await issued(node) for _ in range(2)]

    refused = [
        await node.send("POST", URL, VIEWER, who="tenant_admin"),
        await node.send("POST", f"{URL}/{first['key']['id']}:rotate", {}, who="tenant_admin"),
    ]

    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(409, "too_many_keys")] * 2
    await node.send("POST", f"{URL}/{first['key']['id']}:revoke", {}, who="tenant_admin")
    await issued(node)
    assert own_keys.LIMITS == {"max_keys_in_force": directory.MAX_KEYS}
