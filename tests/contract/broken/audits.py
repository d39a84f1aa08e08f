"""Broken audits."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import audit
from adapters.inproc.audit import CURSOR, InprocAuditLog
from adapters.inproc.store import Store, store
from conformance.audit import AuditContract
from ports.audit import READ, AuditLog, Head, Link, Note, Wanted
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.ids import PrincipalId, TenantId
from ports.messages import Page
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenHarness(InprocHarness[AuditLog]):
    def __init__(self, broken: type[InprocAuditLog], *, forgetful: bool) -> None:
        super().__init__(audit.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> AuditLog:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> AuditLog:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenAudits(Mutant, AuditContract):
    broken: ClassVar[type[InprocAuditLog]] = InprocAuditLog
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenHarness]:
        async with closing(BrokenHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenAudits):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class ForgetsTheOutcome(InprocAuditLog):
    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await super().note(auth, replace(note, outcome="done"), tenant=tenant)


class TestForgetsTheOutcome(BrokenAudits):
    broken = ForgetsTheOutcome
    caught_by = frozenset(
        {
            "test_an_entry_says_what_was_noted_who_did_it_and_when",
            "test_a_query_gives_what_matches_all_of_it_newest_first",
        }
    )


class HashesWithoutTheNumber(InprocAuditLog):
    """Each link over the entry alone."""

    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await super().note(auth, note, tenant=tenant)
        links = self._chains.of(auth.tenant if tenant is None else tenant)
        links[-1] = replace(links[-1], hash="11" * 32)


class TestHashesWithoutTheNumber(BrokenAudits):
    broken = HashesWithoutTheNumber
    caught_by = frozenset(
        {
            "test_each_hash_follows_from_the_one_before_the_number_and_the_entry",
            "test_what_is_erased_leaves_its_place_and_an_entry_that_tells",
        }
    )


class OneChainForAll(InprocAuditLog):
    """Numbers tell how much others do."""

    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await super().note(auth, note, tenant=tenant)
        links = self._chains.of(auth.tenant if tenant is None else tenant)
        links[-1] = replace(links[-1], seq=sum(map(len, self._chains.links.values())))


class TestOneChainForAll(BrokenAudits):
    broken = OneChainForAll
    caught_by = frozenset(
        {
            "test_numbers_have_no_gaps_whoever_adds_at_the_same_time",
            "test_a_chain_tells_nothing_of_another_tenants",
        }
    )


class LetsEverybodyNote(InprocAuditLog):
    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await super().note(replace(auth, scopes=auth.scopes | {ADMIN_PLATFORM}), note, tenant=tenant)


class TestLetsEverybodyNote(BrokenAudits):
    broken = LetsEverybodyNote
    caught_by = frozenset({"test_the_platform_notes_in_the_audit_of_another_and_a_tenant_may_not"})


class LetsEverybodyRead(InprocAuditLog):
    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        auth = replace(auth, scopes=auth.scopes | {READ})
        return await super().chain(auth, tenant, after=after, limit=limit)


class TestLetsEverybodyRead(BrokenAudits):
    broken = LetsEverybodyRead
    caught_by = frozenset({"test_reading_needs_its_scope_and_another_tenants_the_platforms"})


class LooksInSecret(InprocAuditLog):
    def _looked(self, auth: AuthContext, tenant: TenantId) -> None:
        if auth.tenant == tenant:
            super()._looked(auth, tenant)


class TestLooksInSecret(BrokenAudits):
    broken = LooksInSecret
    caught_by = frozenset({"test_a_look_into_anothers_audit_is_in_that_audit"})


class LooksInSecretWhereItActs(InprocAuditLog):
    """Whoever acts for a tenant is taken for one of its own."""

    def _looked(self, auth: AuthContext, tenant: TenantId) -> None:
        if auth.tenant != tenant:
            super()._looked(auth, tenant)


class TestLooksInSecretWhereItActs(BrokenAudits):
    broken = LooksInSecretWhereItActs
    caught_by = frozenset({"test_a_look_of_who_acts_for_the_tenant_is_anothers_look"})


class IgnoresThePrincipal(InprocAuditLog):
    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]:
        return await super().query(auth, tenant, replace(wanted, principal=None), limit=limit, cursor=cursor)


class TestIgnoresThePrincipal(BrokenAudits):
    broken = IgnoresThePrincipal
    caught_by = frozenset({"test_a_query_gives_what_matches_all_of_it_newest_first"})


class PagesByOffset(InprocAuditLog):
    """What is added moves the pages behind a cursor."""

    async def query(
        self, auth: AuthContext, tenant: TenantId, wanted: Wanted, *, limit: int, cursor: str | None = None
    ) -> Page[Link]:
        skipped = 0 if cursor is None else decode_cursor(CURSOR, cursor, tuple[int])[0]
        page = await super().query(auth, tenant, wanted, limit=200)
        await super().query(auth, tenant, wanted, limit=limit)
        end = skipped + limit
        more = encode_cursor(CURSOR, (end,)) if end < len(page.items) else None
        return Page(items=page.items[skipped:end], next_cursor=more)


class TestPagesByOffset(BrokenAudits):
    broken = PagesByOffset
    caught_by = frozenset(
        {
            "test_what_is_added_meanwhile_is_not_on_later_pages",
            "test_a_look_into_anothers_audit_is_in_that_audit",
            "test_a_look_of_who_acts_for_the_tenant_is_anothers_look",
        }
    )


class SkipsWhatIsErased(InprocAuditLog):
    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        found = await super().chain(auth, tenant, after=after, limit=limit)
        return tuple(one for one in found if one.entry is not None)


class TestSkipsWhatIsErased(BrokenAudits):
    broken = SkipsWhatIsErased
    caught_by = frozenset(
        {
            "test_what_is_erased_leaves_its_place_and_an_entry_that_tells",
            "test_what_tells_of_an_erasure_stays",
        }
    )


class StopsAfterTheFirstStretch(InprocAuditLog):
    async def chain(self, auth: AuthContext, tenant: TenantId, *, after: int, limit: int) -> tuple[Link, ...]:
        return () if after else await super().chain(auth, tenant, after=after, limit=limit)


class TestStopsAfterTheFirstStretch(BrokenAudits):
    broken = StopsAfterTheFirstStretch
    caught_by = frozenset({"test_the_chain_comes_in_stretches_oldest_first"})


class ErasesInSecret(InprocAuditLog):
    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int:
        many = await super().erase(auth, tenant, first=first, last=last, principal=principal)
        if many:
            self._chains.of(tenant).pop()
        return many


class TestErasesInSecret(BrokenAudits):
    broken = ErasesInSecret
    caught_by = frozenset(
        {
            "test_what_is_erased_leaves_its_place_and_an_entry_that_tells",
            "test_what_tells_of_an_erasure_stays",
        }
    )


class ErasesForEverybody(InprocAuditLog):
    async def erase(
        self, auth: AuthContext, tenant: TenantId, *, first: int, last: int, principal: PrincipalId | None = None
    ) -> int:
        auth = replace(auth, scopes=auth.scopes | {ADMIN_PLATFORM})
        return await super().erase(auth, tenant, first=first, last=last, principal=principal)


class TestErasesForEverybody(BrokenAudits):
    broken = ErasesForEverybody
    caught_by = frozenset({"test_reading_needs_its_scope_and_another_tenants_the_platforms"})


class HidesAHead(InprocAuditLog):
    async def heads(self, auth: AuthContext, *, after: TenantId | None = None, limit: int) -> tuple[Head, ...]:
        return (await super().heads(auth, after=after, limit=limit + 1))[1:]


class TestHidesAHead(BrokenAudits):
    broken = HidesAHead
    caught_by = frozenset({"test_the_signer_gets_every_head_and_nobody_else_does"})


class CutsWhatIsLong(InprocAuditLog):
    async def note(self, auth: AuthContext, note: Note, *, tenant: TenantId | None = None) -> None:
        await super().note(auth, replace(note, detail=note.detail[:2_000]), tenant=tenant)


class TestCutsWhatIsLong(BrokenAudits):
    broken = CutsWhatIsLong
    caught_by = frozenset({"test_what_can_not_be_kept_is_refused"})


class AnswersForAnyHome(InprocAuditLog):
    """Whoever looks for a chain elsewhere finds this one, and takes it for good."""

    def at(self, home: str) -> AuditLog:
        del home
        return self


class TestAnswersForAnyHome(BrokenAudits):
    broken = AnswersForAnyHome
    caught_by = frozenset({"test_each_storage_that_is_read_has_chains_of_its_own_and_no_other_is_read"})


class NamesAHomeOfItsOwn(InprocAuditLog):
    """Its own storage, once more under another name."""

    @property
    def homes(self) -> tuple[str, ...]:
        return ("eu1",)

    def at(self, home: str) -> AuditLog:
        return self if home in self.homes else super().at(home)


class TestNamesAHomeOfItsOwn(BrokenAudits):
    broken = NamesAHomeOfItsOwn
    caught_by = frozenset({"test_each_storage_that_is_read_has_chains_of_its_own_and_no_other_is_read"})


class TestForgetsAtReopen(BrokenAudits):
    forgetful = True
    caught_by = frozenset(
        {
            "test_what_was_noted_is_there_for_a_log_opened_anew",
            "test_numbers_have_no_gaps_whoever_adds_at_the_same_time",
        }
    )
