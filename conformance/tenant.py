"""What every TenantDirectory must show. Clauses: `ports.tenant`."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import msgspec
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import TenantHarness
from conformance.people import PLATFORM
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from ports.ids import KeyId, PrincipalId, TenantId
from ports.messages import Json
from ports.policy import Argument, Policy, Rule
from ports.tenant import MAX_KEYS, ApiKey, Entitlements, NewKey, Standing, Tenant, TenantDirectory

# Not `people.TENANTS`: those may exist already.
INITECH: Final = TenantId("tnt_initech")
HOOLI: Final = TenantId("tnt_hooli")
NOBODY: Final = TenantId("tnt_nobody")
RULE: Final = Rule(
    id="pays-known",
    effect="allow",
    on=("offer", "call"),
    functions=("pay_*",),
    arguments=(Argument(path="to", values=("ann", 7, 1.5, True, None)), Argument(path="sum", least=0, most=9.5)),
)
ENTITLED: Final = Entitlements(models=("demo-1", "demo-2"), tokens_per_day=1_234)

PETER: Final = AuthContext(
    tenant=INITECH, principal=PrincipalId("usr_peter"), scopes=frozenset({"admin:tenant"}), namespace="lab"
)
GAVIN: Final = AuthContext(tenant=HOOLI, principal=PrincipalId("usr_gavin"), scopes=frozenset({"admin:tenant"}))

SECRET: Final = "not a secret, only a text in a test"
DIGEST: Final = hashlib.sha256(SECRET.encode()).digest()
OTHER_DIGEST: Final = hashlib.sha256(b"another").digest()
ABSENT: Final = KeyId("key_" + "0" * 32)
HOUR: Final = timedelta(hours=1)
PRINTER: Final = PrincipalId("svc_printer")
VIEWER: Final = frozenset({"viewer"})
READING: Final = frozenset({"runs:read"})


async def directory_of_two(harness: TenantHarness) -> TenantDirectory:
    directory = await harness.open()
    for tenant in (INITECH, HOOLI):
        await directory.create(PLATFORM, tenant, name=tenant.title(), entitlements=ENTITLED)
    return directory


def new_key(digest: bytes = DIGEST) -> NewKey:
    return NewKey(
        principal=PrincipalId("svc_printer"),
        scopes=frozenset({"runs:create", "runs:read"}),
        roles=frozenset({"service"}),
        label="printer",
        secret_sha256=digest,
    )


@pytest.mark.anyio
class TenantContract(Contract):
    @clause("TNT-1")
    async def test_a_created_tenant_is_active_with_its_entitlements(self, harness: TenantHarness) -> None:
        directory = await harness.open()

        tenant = await directory.create(PLATFORM, INITECH, name="Initech “GmbH”", entitlements=ENTITLED)

        assert (tenant.id, tenant.name, tenant.status) == (INITECH, "Initech “GmbH”", "active")
        assert tenant.entitlements == ENTITLED
        assert await directory.get(PETER, INITECH) == tenant

    @clause("TNT-1")
    async def test_an_id_already_taken_conflicts_and_changes_nothing(self, harness: TenantHarness) -> None:
        directory = await harness.open()
        tenant = await directory.create(PLATFORM, INITECH, name="First", entitlements=ENTITLED)

        with pytest.raises(Conflict):
            await directory.create(PLATFORM, INITECH, name="Second", entitlements=Entitlements())

        assert await directory.get(PETER, INITECH) == tenant

    @clause("TNT-1")
    @pytest.mark.parametrize("tenant", ["", "initech", "tnt_", "tnt_UPPER", "tnt_a'b", "tnt_" + "x" * 100])
    async def test_what_can_not_name_a_tenant_is_refused(self, harness: TenantHarness, tenant: str) -> None:
        directory = await harness.open()

        with pytest.raises(InvalidArgument):
            await directory.create(PLATFORM, TenantId(tenant), name="x", entitlements=ENTITLED)

    @clause("TNT-2")
    async def test_a_caller_gets_its_own_tenant_or_not_found(self, harness: TenantHarness) -> None:
        directory = await harness.open()

        with pytest.raises(NotFound):
            await directory.get(PETER, INITECH)
        with pytest.raises(NotFound):
            await directory.get(PLATFORM, NOBODY)
        tenant = await directory.create(PLATFORM, INITECH, name="Initech", entitlements=ENTITLED)

        assert await directory.get(PETER, INITECH) == tenant
        assert await directory.get(PLATFORM, INITECH) == tenant

    @clause("TNT-3")
    @pytest.mark.parametrize("call", ["create", "list_tenants", "set_status", "get"])
    async def test_what_concerns_others_needs_the_platforms_scope(self, harness: TenantHarness, call: str) -> None:
        directory = await directory_of_two(harness)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: directory.create(PETER, NOBODY, name="x", entitlements=ENTITLED),
            "list_tenants": lambda: directory.list_tenants(PETER, limit=10),
            "set_status": lambda: directory.set_status(PETER, INITECH, "disabled"),
            "get": lambda: directory.get(PETER, HOOLI),
        }

        with pytest.raises(PermissionDenied):
            await calls[call]()

        with pytest.raises(NotFound):
            await directory.get(PLATFORM, NOBODY)
        assert (await directory.get(PETER, INITECH)).status == "active"

    @clause("TNT-3")
    async def test_asking_for_another_tenant_does_not_tell_whether_it_exists(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        texts = set()

        for tenant in (HOOLI, NOBODY):
            with pytest.raises(PermissionDenied) as refusal:
                await directory.get(PETER, tenant)
            texts.add(refusal.value.message.replace(tenant, "…"))

        assert len(texts) == 1

    @clause("TNT-3")
    async def test_the_platform_lists_every_tenant_once_in_pages(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        listed: list[TenantId] = []

        page = await directory.list_tenants(PLATFORM, limit=1)
        listed += [tenant.id for tenant in page.items]
        while page.next_cursor is not None:
            page = await directory.list_tenants(PLATFORM, limit=1, cursor=page.next_cursor)
            listed += [tenant.id for tenant in page.items]

        assert {INITECH, HOOLI} <= set(listed)
        assert len(listed) == len(set(listed))

    @clause("TNT-3")
    async def test_the_platform_disables_and_enables_a_tenant(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)

        disabled = await directory.set_status(PLATFORM, INITECH, "disabled")
        seen = await directory.get(PETER, INITECH)
        enabled = await directory.set_status(PLATFORM, INITECH, "active")

        assert (disabled.status, seen.status, enabled.status) == ("disabled", "disabled", "active")
        with pytest.raises(NotFound):
            await directory.set_status(PLATFORM, NOBODY, "disabled")

    @clause("TNT-16")
    async def test_keys_in_force_have_a_limit(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        ended = await directory.issue_key(PETER, new_key())
        await directory.revoke_key(PETER, ended.id)
        keys = [await directory.issue_key(PETER, new_key()) for _ in range(MAX_KEYS - 2)]

        answers = await asyncio.gather(
            *(directory.issue_key(PETER, new_key()) for _ in range(6)), return_exceptions=True
        )

        lost = [one for one in answers if isinstance(one, Conflict)]
        assert (len(lost), {one.code for one in lost}) == (4, {"too_many_keys"})
        with pytest.raises(Conflict) as refused:
            await directory.rotate_key(
                PETER, keys[0].id, secret_sha256=OTHER_DIGEST, old_until=keys[0].created_at + HOUR
            )
        assert refused.value.code == "too_many_keys"
        assert (await directory.get_key(PETER, keys[0].id)).expires_at is None
        await directory.issue_key(GAVIN, new_key())
        await directory.revoke_key(PETER, keys[0].id)
        await directory.issue_key(PETER, new_key())

    @clause("TNT-17")
    async def test_a_key_is_given_to_its_tenants_administrator(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())
        await directory.revoke_key(PETER, key.id)

        given = await directory.get_key(PETER, key.id)
        assert (given.id, given.namespace, given.scopes, given.principal) == (
            key.id, PETER.namespace, key.scopes, key.principal
        )  # fmt: skip
        assert given.revoked_at is not None
        for auth, asked in ((GAVIN, key.id), (PETER, ABSENT), (PETER, KeyId("key_x"))):
            with pytest.raises(NotFound):
                await directory.get_key(auth, asked)
        with pytest.raises(PermissionDenied):
            await directory.get_key(msgspec.structs.replace(PETER, scopes=READING), key.id)

    @clause("TNT-17")
    async def test_keys_are_listed_by_namespace(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        other = msgspec.structs.replace(PETER, namespace="attic")
        mine = [(await directory.issue_key(auth, new_key())).id for auth in (PETER, other, PETER, other, PETER)]

        first = await directory.list_keys(PETER, limit=2, namespace="lab")
        second = await directory.list_keys(PETER, limit=2, cursor=first.next_cursor, namespace="lab")

        assert [one.id for one in (*first.items, *second.items)] == sorted(mine[::2])
        assert second.next_cursor is None
        assert [one.id for one in (await directory.list_keys(PETER, limit=9, namespace="attic")).items] == sorted(
            mine[1::2]
        )
        assert (await directory.list_keys(PETER, limit=9, namespace="cellar")).items == ()
        assert len((await directory.list_keys(PETER, limit=9)).items) == 5

    @clause("TNT-15")
    async def test_a_version_grows_with_each_change(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        first = (await directory.get(PLATFORM, INITECH)).version
        wanted = msgspec.structs.replace(ENTITLED, weight=7)

        versions = [
            (await directory.set_entitlements(PLATFORM, INITECH, wanted, if_match=first)).version,
            (await directory.set_entitlements(PLATFORM, INITECH, wanted, if_match=first)).version,
            (await directory.set_status(PLATFORM, INITECH, "disabled")).version,
            (await directory.set_status(PLATFORM, INITECH, "disabled")).version,
            (await directory.set_entitlements(PLATFORM, INITECH, ENTITLED)).version,
        ]

        assert [version - first for version in versions] == [1, 1, 2, 2, 3]
        assert (await directory.get(PETER, INITECH)).version == versions[-1]
        assert [
            one.version for one in (await directory.list_tenants(PLATFORM, limit=10)).items if one.id == INITECH
        ] == [versions[-1]]

    @clause("TNT-15")
    async def test_of_two_who_change_the_same_version_one_wins(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        first = (await directory.get(PLATFORM, INITECH)).version
        wanted = [msgspec.structs.replace(ENTITLED, weight=weight) for weight in range(2, 8)]

        answers = await asyncio.gather(
            *(directory.set_entitlements(PLATFORM, INITECH, one, if_match=first) for one in wanted),
            return_exceptions=True,
        )

        [won] = [one for one in answers if isinstance(one, Tenant)]
        lost = [one for one in answers if isinstance(one, Conflict)]
        assert (len(lost), won.version) == (len(wanted) - 1, first + 1)
        assert {one.details["current"] for one in lost} == {won.version}
        assert await directory.get(PETER, INITECH) == won

    @clause("TNT-8")
    async def test_the_platform_replaces_a_tenants_entitlements(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        other = await directory.get(GAVIN, HOOLI)
        wanted = Entitlements(
            max_active_runs=7,
            runs_per_minute=8,
            max_queued_runs=9,
            weight=3,
            pii={"email": "reversible"},
            tiers=("standard",),
            backends=("one",),
            regions=("eu",),
            policy=Policy(rules=(RULE,)),
        )

        changed = await directory.set_entitlements(PLATFORM, INITECH, wanted)

        assert (changed.entitlements, changed.name, changed.status) == (wanted, "Tnt_Initech", "active")
        assert await directory.get(PETER, INITECH) == changed
        assert await directory.get(GAVIN, HOOLI) == other

    @clause("TNT-8")
    async def test_entitling_needs_the_platforms_scope_and_an_existing_tenant(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)

        with pytest.raises(PermissionDenied):
            await directory.set_entitlements(PETER, INITECH, Entitlements(weight=1_000))
        with pytest.raises(NotFound):
            await directory.set_entitlements(PLATFORM, NOBODY, Entitlements())

        assert (await directory.get(PETER, INITECH)).entitlements == ENTITLED

    @clause("TNT-8")
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_active_runs", 0),
            ("runs_per_minute", 0),
            ("max_queued_runs", 0),
            ("weight", 0),
            ("pii", {"email": "hide"}),
            ("pii", {"E-Mail": "redact"}),
            ("policy", Policy(rules=(msgspec.structs.replace(RULE, id="Not An Id"),))),
            ("policy", Policy(rules=(msgspec.structs.replace(RULE, max_tokens=-1),))),
        ],
        ids=str,
    )
    async def test_entitlements_out_of_their_bounds_are_refused(
        self, harness: TenantHarness, name: str, value: Json
    ) -> None:
        directory = await directory_of_two(harness)
        wrong = msgspec.structs.replace(ENTITLED, **{name: value})

        with pytest.raises(InvalidArgument, match=name):
            await directory.set_entitlements(PLATFORM, INITECH, wrong)
        with pytest.raises(InvalidArgument, match=name):
            await directory.create(PLATFORM, NOBODY, name="x", entitlements=wrong)

        assert (await directory.get(PETER, INITECH)).entitlements == ENTITLED
        with pytest.raises(NotFound):
            await directory.get(PLATFORM, NOBODY)

    @clause("TNT-4", "TNT-5")
    async def test_an_issued_key_is_found_by_its_id_and_digest(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        new = new_key()

        key = await directory.issue_key(PETER, new)

        assert (key.tenant, key.namespace, key.principal) == (INITECH, "lab", new.principal)
        assert (key.scopes, key.roles, key.label) == (new.scopes, new.roles, new.label)
        found = await directory.find_key(key.id, DIGEST)
        assert found is not None
        assert (found.key, found.tenant_status) == (key, "active")

    @clause("TNT-4", "TNT-7")
    async def test_a_key_shows_neither_its_secret_nor_the_digest(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)

        key = await directory.issue_key(PETER, new_key())

        shown = repr(key) + repr(await directory.list_keys(PETER, limit=10)) + msgspec.json.encode(key).decode()
        assert SECRET not in shown
        assert DIGEST.hex() not in shown
        assert "secret" not in shown

    @clause("TNT-5")
    async def test_another_digest_or_an_absent_id_finds_nothing(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())

        assert await directory.find_key(key.id, OTHER_DIGEST) is None
        assert await directory.find_key(key.id, b"") is None
        assert await directory.find_key(ABSENT, DIGEST) is None
        assert await directory.find_key(KeyId("not an id of ours"), DIGEST) is None

    @clause("TNT-5")
    async def test_an_expired_key_is_not_found(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        expires = await harness.now() + HOUR
        key = await directory.issue_key(PETER, msgspec.structs.replace(new_key(), expires_at=expires))

        before = await directory.find_key(key.id, DIGEST)
        await harness.advance(2 * HOUR)

        assert before is not None
        assert before.key.expires_at == expires
        assert await directory.find_key(key.id, DIGEST) is None

    @clause("TNT-5")
    async def test_a_disabled_tenants_key_is_found_and_says_so(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())

        await directory.set_status(PLATFORM, INITECH, "disabled")

        found = await directory.find_key(key.id, DIGEST)
        assert found is not None
        assert found.tenant_status == "disabled"

    @clause("TNT-5", "TNT-6")
    async def test_a_revoked_key_is_not_found_and_revoking_again_is_a_no_op(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())
        other = await directory.issue_key(PETER, new_key(OTHER_DIGEST))

        await directory.revoke_key(PETER, key.id)
        [_, revoked] = await keys_of(directory, PETER, other, key)
        await harness.advance(HOUR)
        await directory.revoke_key(PETER, key.id)

        assert await directory.find_key(key.id, DIGEST) is None
        assert await directory.find_key(other.id, OTHER_DIGEST) is not None
        assert revoked.revoked_at is not None
        assert await keys_of(directory, PETER, key) == [revoked]

    @clause("TNT-6")
    async def test_a_foreign_key_is_not_found_like_an_absent_one(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())
        texts = set()

        for key_id in (key.id, ABSENT, KeyId("not an id of ours")):
            with pytest.raises(NotFound) as refusal:
                await directory.revoke_key(GAVIN, key_id)
            texts.add(refusal.value.message.replace(key_id, "…"))

        assert len(texts) == 1
        assert await directory.find_key(key.id, DIGEST) is not None

    @clause("TNT-7")
    async def test_a_listing_names_the_tenants_own_keys_in_pages(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        mine = {(await directory.issue_key(PETER, new_key())).id for _ in range(5)}
        await directory.issue_key(GAVIN, new_key())
        listed: list[KeyId] = []

        page = await directory.list_keys(PETER, limit=2)
        listed += [key.id for key in page.items]
        while page.next_cursor is not None:
            page = await directory.list_keys(PETER, limit=2, cursor=page.next_cursor)
            listed += [key.id for key in page.items]

        assert len(listed) == 5
        assert set(listed) == mine

    @clause("TNT-7")
    async def test_a_cursor_that_can_not_be_ours_is_refused(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)

        for cursor in ("", "nonsense", "\x00"):
            with pytest.raises(InvalidArgument):
                await directory.list_keys(PETER, limit=1, cursor=cursor)
            with pytest.raises(InvalidArgument):
                await directory.list_tenants(PLATFORM, limit=1, cursor=cursor)

    @clause("TNT-1", "TNT-4")
    async def test_tenants_and_keys_are_there_for_a_directory_opened_anew(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())

        reopened = await harness.reopen()

        assert await reopened.get(PETER, INITECH) == await directory.get(PETER, INITECH)
        found = await reopened.find_key(key.id, DIGEST)
        assert found is not None
        assert found.key == key

    @clause("TNT-9")
    async def test_a_principal_is_kept_as_it_was_put_last(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        first = await directory.put_principal(PETER, PRINTER, status="active")
        await harness.advance(HOUR)

        put = await directory.put_principal(PETER, PRINTER, status="disabled", roles=VIEWER, scopes=READING)

        assert (first.status, first.roles, first.scopes, first.tenant) == ("active", None, None, INITECH)
        assert (put.status, put.roles, put.scopes) == ("disabled", VIEWER, READING)
        assert put.created_at == first.created_at
        assert await directory.get_principal(PETER, PRINTER) == put
        assert (await (await harness.reopen()).list_principals(PETER, limit=10)).items == (put,)

    @clause("TNT-9")
    async def test_a_foreign_principal_is_not_found_like_one_never_put(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        put = await directory.put_principal(PETER, PRINTER, status="disabled")
        texts = set()

        for one in (PRINTER, PrincipalId("svc_nobody")):
            with pytest.raises(NotFound) as refusal:
                await directory.get_principal(GAVIN, one)
            texts.add(refusal.value.message.replace(one, "…"))

        assert len(texts) == 1
        assert (await directory.list_principals(GAVIN, limit=10)).items == ()
        await directory.put_principal(GAVIN, PRINTER, status="active")
        assert await directory.get_principal(PETER, PRINTER) == put

    @clause("TNT-9")
    async def test_principals_need_the_scope_of_the_tenants_administration(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        await directory.put_principal(PETER, PRINTER, status="active")
        worker = msgspec.structs.replace(PETER, scopes=READING)

        for refused in (
            directory.put_principal(worker, PRINTER, status="disabled"),
            directory.get_principal(worker, PRINTER),
            directory.list_principals(worker, limit=10),
        ):
            with pytest.raises(PermissionDenied):
                await refused

        assert (await directory.get_principal(PETER, PRINTER)).status == "active"

    @clause("TNT-9")
    @pytest.mark.parametrize(
        ("roles", "scopes"), [(VIEWER, None), (None, READING), (VIEWER, frozenset({"queue:any-tenant"}))]
    )
    async def test_roles_come_with_their_scopes_and_no_others_than_clients_may_hold(
        self, harness: TenantHarness, roles: frozenset[str] | None, scopes: frozenset[str] | None
    ) -> None:
        directory = await directory_of_two(harness)

        with pytest.raises(InvalidArgument):
            await directory.put_principal(PETER, PRINTER, status="active", roles=roles, scopes=scopes)
        with pytest.raises(NotFound):
            await directory.get_principal(PETER, PRINTER)

    @clause("TNT-9")
    async def test_a_listing_of_principals_comes_in_pages(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        names = [PrincipalId(f"svc_{letter}") for letter in "caebd"]
        for name in names:
            await directory.put_principal(PETER, name, status="active")
        listed: list[str] = []

        cursor: str | None = None
        while True:
            page = await directory.list_principals(PETER, limit=2, cursor=cursor)
            listed += [one.id for one in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break

        assert listed == sorted(names)

    @clause("TNT-10")
    async def test_a_key_and_a_caller_are_found_with_their_principal(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())
        caller = msgspec.structs.replace(PETER, principal=PRINTER, scopes=frozenset())
        unknown = await directory.find_key(key.id, DIGEST)
        free = await directory.standing(caller)

        put = await directory.put_principal(PETER, PRINTER, status="disabled", roles=VIEWER, scopes=READING)

        assert unknown is not None
        assert (unknown.holder, free.principal) == (None, None)
        found = await directory.find_key(key.id, DIGEST)
        assert found is not None
        assert found.holder == put
        assert (await directory.standing(caller)).principal == put
        assert (await directory.standing(msgspec.structs.replace(GAVIN, principal=PRINTER))).principal is None

    @clause("TNT-10")
    async def test_a_standing_tells_the_tenants_status_and_needs_one(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        before = await directory.standing(PETER)

        await directory.set_status(PLATFORM, INITECH, "disabled")

        assert before.tenant_status == "active"
        assert (await directory.standing(PETER)).tenant_status == "disabled"
        with pytest.raises(NotFound):
            await directory.standing(msgspec.structs.replace(PETER, tenant=NOBODY))

    @clause("TNT-11")
    async def test_a_rotated_key_overlaps_with_the_new_one_and_then_ends(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        old = await directory.issue_key(PETER, new_key())
        grace = await harness.now() + HOUR

        made = await directory.rotate_key(PETER, old.id, secret_sha256=OTHER_DIGEST, old_until=grace)

        assert made.id != old.id
        assert (made.principal, made.scopes, made.roles) == (old.principal, old.scopes, old.roles)
        assert (made.namespace, made.label, made.expires_at) == (old.namespace, old.label, None)
        overlapping = await directory.find_key(old.id, DIGEST)
        assert overlapping is not None
        assert overlapping.key.expires_at == grace
        assert await directory.find_key(made.id, OTHER_DIGEST) is not None
        assert await directory.find_key(made.id, DIGEST) is None
        await harness.advance(2 * HOUR)
        assert await directory.find_key(old.id, DIGEST) is None
        assert await directory.find_key(made.id, OTHER_DIGEST) is not None

    @clause("TNT-11")
    async def test_a_rotation_never_makes_the_old_key_live_longer(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        ends = await harness.now() + HOUR
        old = await directory.issue_key(PETER, msgspec.structs.replace(new_key(), expires_at=ends))

        await directory.rotate_key(PETER, old.id, secret_sha256=OTHER_DIGEST, old_until=ends + 5 * HOUR)

        found = await directory.find_key(old.id, DIGEST)
        assert found is not None
        assert found.key.expires_at == ends

    @clause("TNT-11")
    async def test_a_key_that_has_ended_is_not_rotated(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        now = await harness.now()
        revoked = await directory.issue_key(PETER, new_key())
        expired = await directory.issue_key(PETER, msgspec.structs.replace(new_key(), expires_at=now + HOUR))
        await directory.revoke_key(PETER, revoked.id)
        await harness.advance(2 * HOUR)

        for key in (revoked, expired):
            with pytest.raises(Conflict):
                await directory.rotate_key(PETER, key.id, secret_sha256=OTHER_DIGEST, old_until=now + 9 * HOUR)

        assert len((await directory.list_keys(PETER, limit=10)).items) == 2
        assert await directory.find_key(revoked.id, DIGEST) is None
        assert await directory.find_key(expired.id, DIGEST) is None

    @clause("TNT-11")
    async def test_rotation_is_for_the_tenants_own_administration(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        key = await directory.issue_key(PETER, new_key())
        until = await harness.now()
        texts = set()

        for key_id in (key.id, ABSENT, KeyId("not an id of ours")):
            with pytest.raises(NotFound) as refusal:
                await directory.rotate_key(GAVIN, key_id, secret_sha256=OTHER_DIGEST, old_until=until)
            texts.add(refusal.value.message.replace(key_id, "…"))
        worker = msgspec.structs.replace(PETER, scopes=READING)
        with pytest.raises(PermissionDenied):
            await directory.rotate_key(worker, key.id, secret_sha256=OTHER_DIGEST, old_until=until)

        assert len(texts) == 1
        assert await directory.find_key(key.id, DIGEST) is not None

    @clause("TNT-12")
    async def test_the_platform_says_who_of_another_tenant_acts_for_one(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        for _ in range(2):
            await directory.let_act(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PRINTER)
        await directory.let_act(PLATFORM, INITECH, actor_tenant=NOBODY, principal=PRINTER)

        told = [(one.actor_tenant, one.principal) for one in await directory.list_acting(PETER, INITECH)]

        assert told == [(HOOLI, PRINTER), (NOBODY, PRINTER)]
        assert await directory.list_acting(PLATFORM, INITECH) == await directory.list_acting(PETER, INITECH)
        assert await directory.list_acting(GAVIN, HOOLI) == ()
        for _ in range(2):
            await directory.end_acting(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PRINTER)
        assert [one.actor_tenant for one in await directory.list_acting(PETER, INITECH)] == [NOBODY]

    @clause("TNT-12")
    async def test_nobody_else_may_say_or_see_it(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        worker = msgspec.structs.replace(PETER, scopes=READING)

        for refused in (
            directory.let_act(PETER, INITECH, actor_tenant=HOOLI, principal=PRINTER),
            directory.end_acting(PETER, INITECH, actor_tenant=HOOLI, principal=PRINTER),
            directory.list_acting(GAVIN, INITECH),
            directory.list_acting(worker, INITECH),
        ):
            with pytest.raises(PermissionDenied):
                await refused
        for absent in (
            directory.let_act(PLATFORM, NOBODY, actor_tenant=HOOLI, principal=PRINTER),
            directory.end_acting(PLATFORM, NOBODY, actor_tenant=HOOLI, principal=PRINTER),
            directory.list_acting(PLATFORM, NOBODY),
        ):
            with pytest.raises(NotFound):
                await absent
        for actor, principal in ((INITECH, PRINTER), (TenantId("hooli"), PRINTER), (HOOLI, PrincipalId("p" * 250))):
            with pytest.raises(InvalidArgument):
                await directory.let_act(PLATFORM, INITECH, actor_tenant=actor, principal=principal)

    @clause("TNT-13")
    async def test_who_may_act_for_a_tenant_stands_there_under_a_name_of_its_own(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        actor = msgspec.structs.replace(GAVIN, principal=PRINTER)
        there = actor.acting_for(INITECH)
        await directory.let_act(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PRINTER)
        await directory.put_principal(PETER, PRINTER, status="disabled")
        free = await directory.acting(actor, INITECH)

        barred = await directory.put_principal(PETER, there.principal, status="disabled")
        await directory.set_status(PLATFORM, INITECH, "disabled")

        assert (free.tenant_status, free.principal) == ("active", None), "its namesake is somebody else"
        assert await directory.acting(actor, INITECH) == Standing(tenant_status="disabled", principal=barred)

    @clause("TNT-13")
    async def test_who_may_not_learns_nothing_of_the_tenant(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        actor = msgspec.structs.replace(GAVIN, principal=PRINTER)
        await directory.let_act(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PRINTER)
        await directory.end_acting(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PRINTER)
        await directory.let_act(PLATFORM, INITECH, actor_tenant=HOOLI, principal=PrincipalId("svc_other"))
        await directory.let_act(PLATFORM, INITECH, actor_tenant=NOBODY, principal=PRINTER)
        texts = set()

        for tenant in (INITECH, NOBODY, HOOLI, TenantId("tnt_x'; --")):
            with pytest.raises(NotFound) as refusal:
                await directory.acting(actor, tenant)
            texts.add(refusal.value.message)

        assert len(texts) == 1

    @clause("TNT-14")
    async def test_a_keys_last_use_is_told_and_never_goes_back(self, harness: TenantHarness) -> None:
        directory = await directory_of_two(harness)
        used = await directory.issue_key(PETER, new_key())
        unused = await directory.issue_key(GAVIN, new_key(OTHER_DIGEST))
        now = await harness.now()

        await directory.keys_used({})
        await directory.keys_used({used.id: now - HOUR, ABSENT: now})
        await directory.keys_used({used.id: now - 2 * HOUR})

        [told] = (await directory.list_keys(PETER, limit=10)).items
        assert told.last_used_at == now - HOUR
        assert (await directory.list_keys(GAVIN, limit=10)).items == (unused,)
        made = await directory.rotate_key(PETER, used.id, secret_sha256=OTHER_DIGEST, old_until=now + HOUR)
        assert made.last_used_at is None


async def keys_of(directory: TenantDirectory, auth: AuthContext, *wanted: ApiKey) -> list[ApiKey]:
    """The listing's present form of these keys."""
    listed = {key.id: key for key in (await directory.list_keys(auth, limit=100)).items}
    return [listed[key.id] for key in wanted]
