"""Broken tenant directories."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import ClassVar, Literal

import pytest
from msgspec.structs import replace

from adapters.inproc import tenant
from adapters.inproc.store import Store, store
from adapters.inproc.tenant import InprocTenants
from conformance.people import PLATFORM
from conformance.tenant import TenantContract
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, InvalidArgument, NotFound
from ports.ids import KeyId, PrincipalId, TenantId
from ports.messages import Page
from ports.tenant import ApiKey, Entitlements, FoundKey, NewKey, Principal, Standing, Tenant, TenantDirectory
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenTenantHarness(InprocHarness[TenantDirectory]):
    def __init__(self, broken: type[InprocTenants], *, forgetful: bool) -> None:
        super().__init__(tenant.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> TenantDirectory:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> TenantDirectory:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenTenants(Mutant, TenantContract):
    broken: ClassVar[type[InprocTenants]] = InprocTenants
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenTenantHarness]:
        async with closing(BrokenTenantHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenTenants):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class ReplacesTenants(InprocTenants):
    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant:
        self._tenants.rows.pop(tenant, None)
        return await super().create(auth, tenant, name=name, entitlements=entitlements)


class TestReplacesTenants(BrokenTenants):
    broken = ReplacesTenants
    caught_by = frozenset(
        {
            "test_an_id_already_taken_conflicts_and_changes_nothing",
        }
    )


class TakesAnyName(InprocTenants):
    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant:
        try:
            return await super().create(auth, tenant, name=name, entitlements=entitlements)
        except InvalidArgument:
            return await super().create(auth, TenantId("tnt_renamed"), name=name, entitlements=entitlements)


class TestTakesAnyName(BrokenTenants):
    broken = TakesAnyName
    caught_by = frozenset(
        {
            "test_what_can_not_name_a_tenant_is_refused",
        }
    )


class InventsTenants(InprocTenants):
    def _row(self, tenant: TenantId) -> Tenant:
        try:
            return super()._row(tenant)
        except NotFound:
            return Tenant(
                id=tenant, name="", status="active", entitlements=Entitlements(), created_at=self._clock.now()
            )


class TestInventsTenants(BrokenTenants):
    broken = InventsTenants
    caught_by = frozenset(
        {
            "test_nobody_else_may_say_or_see_it",
            "test_a_caller_gets_its_own_tenant_or_not_found",
            "test_a_standing_tells_the_tenants_status_and_needs_one",
            "test_entitlements_out_of_their_bounds_are_refused",
            "test_entitling_needs_the_platforms_scope_and_an_existing_tenant",
            "test_the_platform_disables_and_enables_a_tenant",
            "test_what_concerns_others_needs_the_platforms_scope",
        }
    )


class ShowsTenantsToAnybody(InprocTenants):
    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        del auth
        return self._row(tenant)


class TestShowsTenantsToAnybody(BrokenTenants):
    broken = ShowsTenantsToAnybody
    caught_by = frozenset(
        {
            "test_what_concerns_others_needs_the_platforms_scope",
            "test_asking_for_another_tenant_does_not_tell_whether_it_exists",
        }
    )


class ListsTenantsForAnybody(InprocTenants):
    async def list_tenants(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Tenant]:
        del auth
        return await super().list_tenants(PLATFORM, limit=limit, cursor=cursor)


class TestListsTenantsForAnybody(BrokenTenants):
    broken = ListsTenantsForAnybody
    caught_by = frozenset(
        {
            "test_what_concerns_others_needs_the_platforms_scope",
        }
    )


class LooksBeforeItAsksForTheScope(InprocTenants):
    """Says to anybody whether a tenant exists."""

    async def get(self, auth: AuthContext, tenant: TenantId) -> Tenant:
        self._row(tenant)
        return await super().get(auth, tenant)


class TestLooksBeforeItAsksForTheScope(BrokenTenants):
    broken = LooksBeforeItAsksForTheScope
    caught_by = frozenset(
        {
            "test_asking_for_another_tenant_does_not_tell_whether_it_exists",
        }
    )


class DisablesNobody(InprocTenants):
    async def set_status(self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]) -> Tenant:
        known = self._tenants.rows.get(tenant)
        changed = await super().set_status(auth, tenant, status)
        if known is not None:
            self._tenants.rows[tenant] = known
        return changed


class TestDisablesNobody(BrokenTenants):
    broken = DisablesNobody
    caught_by = frozenset(
        {
            "test_a_version_grows_with_each_change",
            "test_who_may_act_for_a_tenant_stands_there_under_a_name_of_its_own",
            "test_a_disabled_tenants_key_is_found_and_says_so",
            "test_a_standing_tells_the_tenants_status_and_needs_one",
            "test_the_platform_disables_and_enables_a_tenant",
        }
    )


class ShowsTheDigest(InprocTenants):
    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        key = await super().issue_key(auth, new)
        shown = replace(key, label=f"{key.label} {new.secret_sha256.hex()}")
        self._tenants.keys[key.id] = (shown, new.secret_sha256)
        return shown


class TestShowsTheDigest(BrokenTenants):
    broken = ShowsTheDigest
    caught_by = frozenset(
        {
            "test_an_issued_key_is_found_by_its_id_and_digest",
            "test_a_key_shows_neither_its_secret_nor_the_digest",
        }
    )


class FindsByIdAlone(InprocTenants):
    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        known = self._tenants.keys.get(key_id)
        return await super().find_key(key_id, secret_sha256 if known is None else known[1])


class TestFindsByIdAlone(BrokenTenants):
    broken = FindsByIdAlone
    caught_by = frozenset(
        {
            "test_a_rotated_key_overlaps_with_the_new_one_and_then_ends",
            "test_another_digest_or_an_absent_id_finds_nothing",
        }
    )


class FindsExpiredKeys(InprocTenants):
    async def issue_key(self, auth: AuthContext, new: NewKey) -> ApiKey:
        key = await super().issue_key(auth, replace(new, expires_at=None))
        return replace(key, expires_at=new.expires_at)


class TestFindsExpiredKeys(BrokenTenants):
    broken = FindsExpiredKeys
    caught_by = frozenset(
        {
            "test_a_key_that_has_ended_is_not_rotated",
            "test_a_rotation_never_makes_the_old_key_live_longer",
            "test_an_expired_key_is_not_found",
        }
    )


class RevokesNothing(InprocTenants):
    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        known = self._tenants.keys.get(key_id)
        await super().revoke_key(auth, key_id)
        if known is not None:
            self._tenants.keys[key_id] = known


class TestRevokesNothing(BrokenTenants):
    broken = RevokesNothing
    caught_by = frozenset(
        {
            "test_keys_in_force_have_a_limit",
            "test_a_key_is_given_to_its_tenants_administrator",
            "test_a_key_that_has_ended_is_not_rotated",
            "test_a_revoked_key_is_not_found_and_revoking_again_is_a_no_op",
        }
    )


class RefusesToRevokeTwice(InprocTenants):
    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        known = self._tenants.keys.get(key_id)
        if known is not None and known[0].revoked_at is not None:
            raise Conflict("revoked already")
        await super().revoke_key(auth, key_id)


class TestRefusesToRevokeTwice(BrokenTenants):
    broken = RefusesToRevokeTwice
    caught_by = frozenset(
        {
            "test_a_revoked_key_is_not_found_and_revoking_again_is_a_no_op",
        }
    )


class RevokesForAnybody(InprocTenants):
    async def revoke_key(self, auth: AuthContext, key_id: KeyId) -> None:
        known = self._tenants.keys.get(key_id)
        await super().revoke_key(auth if known is None else replace(auth, tenant=known[0].tenant), key_id)


class TestRevokesForAnybody(BrokenTenants):
    broken = RevokesForAnybody
    caught_by = frozenset(
        {
            "test_a_foreign_key_is_not_found_like_an_absent_one",
        }
    )


class ListsEverybodysKeys(InprocTenants):
    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]:
        page = await super().list_keys(auth, limit=limit, cursor=cursor, namespace=namespace)
        others = tuple(key for key, _ in self._tenants.keys.values() if key.tenant != auth.tenant)
        return page if page.next_cursor else replace(page, items=page.items + others)


class TestListsEverybodysKeys(BrokenTenants):
    broken = ListsEverybodysKeys
    caught_by = frozenset(
        {
            "test_a_keys_last_use_is_told_and_never_goes_back",
            "test_a_listing_names_the_tenants_own_keys_in_pages",
        }
    )


class TakesAnyCursor(InprocTenants):
    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]:
        try:
            return await super().list_keys(auth, limit=limit, cursor=cursor, namespace=namespace)
        except AgentOSError:
            return await super().list_keys(auth, limit=limit, namespace=namespace)


class TestTakesAnyCursor(BrokenTenants):
    broken = TakesAnyCursor
    caught_by = frozenset(
        {
            "test_a_cursor_that_can_not_be_ours_is_refused",
        }
    )


class TestLosesEverythingAtReopen(BrokenTenants):
    forgetful = True
    caught_by = frozenset(
        {"test_a_principal_is_kept_as_it_was_put_last", "test_tenants_and_keys_are_there_for_a_directory_opened_anew"}
    )


class EntitlesNobody(InprocTenants):
    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        known = self._tenants.rows.get(tenant)
        changed = await super().set_entitlements(auth, tenant, entitlements, if_match=if_match)
        if known is not None:
            self._tenants.rows[tenant] = known
        return changed


class TestEntitlesNobody(BrokenTenants):
    broken = EntitlesNobody
    caught_by = frozenset(
        {
            "test_a_version_grows_with_each_change",
            "test_of_two_who_change_the_same_version_one_wins",
            "test_the_platform_replaces_a_tenants_entitlements",
        }
    )


class KeysWithoutALimit(InprocTenants):
    def _check_room(self, tenant: TenantId) -> None:
        pass


class TestKeysWithoutALimit(BrokenTenants):
    broken = KeysWithoutALimit
    caught_by = frozenset({"test_keys_in_force_have_a_limit"})


class GivesAnybodysKey(InprocTenants):
    async def get_key(self, auth: AuthContext, key_id: KeyId) -> ApiKey:
        known = self._tenants.keys.get(key_id)
        return await super().get_key(auth, key_id) if known is None else known[0]


class TestGivesAnybodysKey(BrokenTenants):
    broken = GivesAnybodysKey
    caught_by = frozenset({"test_a_key_is_given_to_its_tenants_administrator"})


class ListsEveryNamespace(InprocTenants):
    async def list_keys(
        self, auth: AuthContext, *, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Page[ApiKey]:
        del namespace
        return await super().list_keys(auth, limit=limit, cursor=cursor)


class TestListsEveryNamespace(BrokenTenants):
    broken = ListsEveryNamespace
    caught_by = frozenset({"test_keys_are_listed_by_namespace"})


class LosesWhatOthersChanged(InprocTenants):
    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        del if_match
        return await super().set_entitlements(auth, tenant, entitlements)


class TestLosesWhatOthersChanged(BrokenTenants):
    broken = LosesWhatOthersChanged
    caught_by = frozenset({"test_of_two_who_change_the_same_version_one_wins"})


class StandsStill(InprocTenants):
    """A version that says nothing."""

    async def set_status(self, auth: AuthContext, tenant: TenantId, status: Literal["active", "disabled"]) -> Tenant:
        changed = replace(await super().set_status(auth, tenant, status), version=1)
        self._tenants.rows[tenant] = changed
        return changed


class TestStandsStill(BrokenTenants):
    broken = StandsStill
    caught_by = frozenset({"test_a_version_grows_with_each_change"})


class EntitlesForAnybody(InprocTenants):
    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        del auth
        return await super().set_entitlements(PLATFORM, tenant, entitlements, if_match=if_match)


class TestEntitlesForAnybody(BrokenTenants):
    broken = EntitlesForAnybody
    caught_by = frozenset(
        {
            "test_entitling_needs_the_platforms_scope_and_an_existing_tenant",
        }
    )


class MergesEntitlements(InprocTenants):
    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        known = self._row(tenant).entitlements if tenant in self._tenants.rows else entitlements
        return await super().set_entitlements(
            auth, tenant, replace(entitlements, models=known.models), if_match=if_match
        )


class TestMergesEntitlements(BrokenTenants):
    broken = MergesEntitlements
    caught_by = frozenset(
        {
            "test_the_platform_replaces_a_tenants_entitlements",
        }
    )


class ClampsEntitlements(InprocTenants):
    async def create(self, auth: AuthContext, tenant: TenantId, *, name: str, entitlements: Entitlements) -> Tenant:
        return await super().create(auth, tenant, name=name, entitlements=clamped(entitlements))

    async def set_entitlements(
        self, auth: AuthContext, tenant: TenantId, entitlements: Entitlements, *, if_match: int | None = None
    ) -> Tenant:
        return await super().set_entitlements(auth, tenant, clamped(entitlements), if_match=if_match)


def clamped(entitlements: Entitlements) -> Entitlements:
    least = {name: max(1, getattr(entitlements, name)) for name in ("max_active_runs", "runs_per_minute", "weight")}
    return replace(entitlements, max_queued_runs=max(1, entitlements.max_queued_runs), **least)


class TestClampsEntitlements(BrokenTenants):
    broken = ClampsEntitlements
    caught_by = frozenset(
        {
            "test_entitlements_out_of_their_bounds_are_refused",
        }
    )


class KeepsTheFirstPrincipal(InprocTenants):
    async def put_principal(
        self,
        auth: AuthContext,
        principal: PrincipalId,
        *,
        status: Literal["active", "disabled"],
        roles: frozenset[str] | None = None,
        scopes: frozenset[str] | None = None,
    ) -> Principal:
        put = await super().put_principal(auth, principal, status=status, roles=roles, scopes=scopes)
        self._tenants.principals[auth.tenant, principal] = replace(put, status="active")
        return put


class TestKeepsTheFirstPrincipal(BrokenTenants):
    broken = KeepsTheFirstPrincipal
    caught_by = frozenset(
        {
            "test_who_may_act_for_a_tenant_stands_there_under_a_name_of_its_own",
            "test_a_principal_is_kept_as_it_was_put_last",
            "test_a_foreign_principal_is_not_found_like_one_never_put",
            "test_a_key_and_a_caller_are_found_with_their_principal",
        }
    )


class FindsNoHolder(InprocTenants):
    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        found = await super().find_key(key_id, secret_sha256)
        return None if found is None else replace(found, holder=None)


class TestFindsNoHolder(BrokenTenants):
    broken = FindsNoHolder
    caught_by = frozenset({"test_a_key_and_a_caller_are_found_with_their_principal"})


class RotatesForEver(InprocTenants):
    async def rotate_key(
        self,
        auth: AuthContext,
        key_id: KeyId,
        *,
        secret_sha256: bytes,
        old_until: datetime,
        expires_at: datetime | None = None,
    ) -> ApiKey:
        made = await super().rotate_key(
            auth, key_id, secret_sha256=secret_sha256, old_until=old_until, expires_at=expires_at
        )
        old, digest = self._tenants.keys[key_id]
        self._tenants.keys[key_id] = (replace(old, expires_at=None), digest)
        return made


class TestRotatesForEver(BrokenTenants):
    broken = RotatesForEver
    caught_by = frozenset(
        {
            "test_a_rotated_key_overlaps_with_the_new_one_and_then_ends",
            "test_a_rotation_never_makes_the_old_key_live_longer",
        }
    )


class LetsEverybodyAct(InprocTenants):
    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        await super().let_act(PLATFORM, tenant, actor_tenant=auth.tenant, principal=auth.principal)
        return await super().acting(auth, tenant)


class TestLetsEverybodyAct(BrokenTenants):
    broken = LetsEverybodyAct
    caught_by = frozenset({"test_who_may_not_learns_nothing_of_the_tenant"})


class NeverEndsActing(InprocTenants):
    async def end_acting(
        self, auth: AuthContext, tenant: TenantId, *, actor_tenant: TenantId, principal: PrincipalId
    ) -> None:
        acting = dict(self._tenants.acting)
        await super().end_acting(auth, tenant, actor_tenant=actor_tenant, principal=principal)
        self._tenants.acting.update(acting)


class TestNeverEndsActing(BrokenTenants):
    broken = NeverEndsActing
    caught_by = frozenset(
        {
            "test_the_platform_says_who_of_another_tenant_acts_for_one",
            "test_who_may_not_learns_nothing_of_the_tenant",
        }
    )


class StandsAsItsNamesake(InprocTenants):
    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        found = await super().acting(auth, tenant)
        return replace(found, principal=self._tenants.principals.get((tenant, auth.principal)))


class TestStandsAsItsNamesake(BrokenTenants):
    broken = StandsAsItsNamesake
    caught_by = frozenset({"test_who_may_act_for_a_tenant_stands_there_under_a_name_of_its_own"})


class TellsTheLatestNoteOfUse(InprocTenants):
    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        for key_id in used.keys() & self._tenants.keys.keys():
            key, digest = self._tenants.keys[key_id]
            self._tenants.keys[key_id] = (replace(key, last_used_at=used[key_id]), digest)


class TestTellsTheLatestNoteOfUse(BrokenTenants):
    broken = TellsTheLatestNoteOfUse
    caught_by = frozenset({"test_a_keys_last_use_is_told_and_never_goes_back"})
