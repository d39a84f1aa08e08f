"""Broken privacies, and upkeeps that heed them not."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc.holds import Holds
from adapters.inproc.maintenance import InprocMaintenance
from adapters.inproc.privacy import InprocPrivacy
from adapters.inproc.runs import RunRow
from adapters.inproc.store import Store, store
from adapters.inproc.tenant import InprocTenants
from conformance.people import PLATFORM
from conformance.privacy import PrivacyContract
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import KeyId, PrincipalId, TenantId
from ports.maintenance import MaintenancePort
from ports.privacy import (
    BEGUN,
    ERASED,
    Counts,
    DataClass,
    Erasure,
    Hold,
    PrivacyPort,
    changes,
    check_days,
    check_subject,
    erased_name,
)
from ports.run_state import TERMINAL
from ports.tenant import FoundKey, Standing, TenantDirectory
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocPrivacyHarness, closing


class BrokenHarness(InprocPrivacyHarness):
    def __init__(
        self, broken: type[InprocPrivacy], upkeep: type[InprocMaintenance], directory: type[InprocTenants]
    ) -> None:
        super().__init__()
        self._broken = broken
        self._upkeep = upkeep
        self._directory = directory

    async def open(self) -> PrivacyPort:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> PrivacyPort:
        return self._broken(store(self.config.name), self.clock)

    async def maintenance(self) -> MaintenancePort:
        return self._upkeep(store(self.config.name), self.clock)

    async def tenants(self) -> TenantDirectory:
        return self._directory(store(self.config.name), self.clock)


class BrokenPrivacy(Mutant, PrivacyContract):
    broken: ClassVar[type[InprocPrivacy]] = InprocPrivacy
    upkeep: ClassVar[type[InprocMaintenance]] = InprocMaintenance
    directory: ClassVar[type[InprocTenants]] = InprocTenants

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenHarness]:
        async with closing(BrokenHarness(self.broken, self.upkeep, self.directory)) as harness:
            yield harness


class TestIsHonest(BrokenPrivacy):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


WHOLE = frozenset(
    {
        "test_all_that_is_a_subjects_goes_and_nothing_of_others",
        "test_whoever_repeats_it_brings_it_to_its_end",
        "test_asked_again_it_looks_again",
        "test_a_subject_with_an_open_run_keeps_everything",
        "test_what_is_held_is_not_erased",
        "test_a_hold_on_one_holds_nobody_else",
    }
)
"""What looks at all that is left of a subject."""


class LeavesMemory(InprocPrivacy):
    async def _rest(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, counts: Counts) -> Counts:
        kept = dict(self._items.rows)
        done = await super()._rest(auth, tenant, subject, counts)
        self._items.rows.update(kept)
        return replace(done, memory=counts.memory)


class TestLeavesMemory(BrokenPrivacy):
    broken = LeavesMemory
    caught_by = WHOLE


class LeavesNamesOnRequests(InprocPrivacy):
    def _erase_requests(self, tenant: TenantId, subject: str) -> tuple[int, int]:  # noqa: ARG002 - the port names them
        return 0, 0


class TestLeavesNamesOnRequests(BrokenPrivacy):
    broken = LeavesNamesOnRequests
    caught_by = WHOLE | {"test_requests_and_usage_still_count_and_are_nobodys"}


class ForgetsThatRequestsWere(InprocPrivacy):
    """Takes the figures with the names."""

    def _erase_usage(self, tenant: TenantId, subject: str) -> int:
        done = super()._erase_usage(tenant, subject)
        self._books.events.clear()
        return done


class TestForgetsThatRequestsWere(BrokenPrivacy):
    broken = ForgetsThatRequestsWere
    caught_by = frozenset(
        {
            "test_all_that_is_a_subjects_goes_and_nothing_of_others",
            "test_requests_and_usage_still_count_and_are_nobodys",
            "test_what_usage_and_the_audit_said_goes_and_they_stay",
        }
    )


class LeavesTheAudit(InprocPrivacy):
    async def _rest(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, counts: Counts) -> Counts:
        before = list(self._chains.of(tenant))
        done = await super()._rest(auth, tenant, subject, counts)
        self._chains.links[tenant] = before
        return done


class TestLeavesTheAudit(BrokenPrivacy):
    broken = LeavesTheAudit
    caught_by = WHOLE | {
        "test_the_audit_says_nothing_of_the_subject_and_its_chain_holds",
        "test_the_audit_keeps_what_a_namesake_of_another_tenant_did",
    }


class CutsTheAudit(InprocPrivacy):
    """Takes links with what they said."""

    async def _rest(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, counts: Counts) -> Counts:
        done = await super()._rest(auth, tenant, subject, counts)
        links = self._chains.of(tenant)
        self._chains.links[tenant] = [one for one in links if one.entry is not None]
        return done


class TestCutsTheAudit(BrokenPrivacy):
    broken = CutsTheAudit
    caught_by = frozenset(
        {
            "test_the_audit_says_nothing_of_the_subject_and_its_chain_holds",
            "test_the_audit_keeps_what_a_namesake_of_another_tenant_did",
        }
    )


class TakesWhatANamesakeDid(InprocPrivacy):
    """Goes by the name alone."""

    async def _rest(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, counts: Counts) -> Counts:
        done = await super()._rest(auth, tenant, subject, counts)
        links = self._chains.of(tenant)
        links[:] = [
            replace(one, entry=None) if one.entry is not None and one.entry.principal == subject else one
            for one in links
        ]
        return done


class TestTakesWhatANamesakeDid(BrokenPrivacy):
    broken = TakesWhatANamesakeDid
    caught_by = frozenset({"test_the_audit_keeps_what_a_namesake_of_another_tenant_did"})


class NamesWhoWasErased(InprocPrivacy):
    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        done = await super().erase(auth, tenant, subject)
        await self._note(auth, tenant, BEGUN, subject)
        return done


class TestNamesWhoWasErased(BrokenPrivacy):
    broken = NamesWhoWasErased
    caught_by = frozenset(
        {
            "test_the_audit_says_nothing_of_the_subject_and_its_chain_holds",
            "test_whoever_repeats_it_brings_it_to_its_end",
            "test_what_usage_and_the_audit_said_goes_and_they_stay",
        }
    )


class LooksOnce(InprocPrivacy):
    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        check_subject(subject)
        known = self._tombstones.get((tenant, erased_name(tenant, subject)))
        return await super().erase(auth, tenant, subject) if known is None else known


class TestLooksOnce(BrokenPrivacy):
    broken = LooksOnce
    caught_by = frozenset(
        {
            "test_asked_again_it_looks_again",
            "test_a_hold_comes_into_force_in_the_midst_of_an_erasing",
        }
    )


class TakesEverybodys(InprocPrivacy):
    def _runs_of(self, tenant: TenantId, subject: str) -> dict[tuple[TenantId, str, Any], RunRow]:  # noqa: ARG002 - the port names them
        return {key: row for key, row in self._runs.rows.items() if row.run.tenant == tenant}


class TestTakesEverybodys(BrokenPrivacy):
    broken = TakesEverybodys
    caught_by = frozenset({"test_all_that_is_a_subjects_goes_and_nothing_of_others"})


class TakesOtherTenants(InprocPrivacy):
    def _runs_of(self, tenant: TenantId, subject: str) -> dict[tuple[TenantId, str, Any], RunRow]:  # noqa: ARG002 - the port names them
        return {key: row for key, row in self._runs.rows.items() if row.run.requester.principal == subject}


class TestTakesOtherTenants(BrokenPrivacy):
    broken = TakesOtherTenants
    caught_by = frozenset({"test_all_that_is_a_subjects_goes_and_nothing_of_others"})


BARRED = frozenset(
    {
        "test_a_subject_is_barred_from_the_first_call_on_and_for_good",
        "test_a_key_of_whoever_was_erased_is_nobodys_way_in",
        "test_who_acts_from_elsewhere_and_was_erased_acts_no_more",
    }
)


class BarsNobody(InprocPrivacy):
    def _bar(self, tenant: TenantId, name: PrincipalId) -> None:
        pass


class TestBarsNobody(BrokenPrivacy):
    broken = BarsNobody
    caught_by = BARRED


class BarsUntilItIsDone(InprocPrivacy):
    """Nothing bars who is named by nothing any more."""

    def _bar(self, tenant: TenantId, name: PrincipalId) -> None:
        if not name.startswith(ERASED):
            super()._bar(tenant, name)


class TestBarsUntilItIsDone(BrokenPrivacy):
    broken = BarsUntilItIsDone
    caught_by = BARRED


class BarsAtOneDoor(InprocTenants):
    """Looks for tombstones in `standing` only."""

    async def find_key(self, key_id: KeyId, secret_sha256: bytes) -> FoundKey | None:
        found = await super().find_key(key_id, secret_sha256)
        if found is None:
            return None
        return replace(found, holder=self._tenants.principals.get((found.key.tenant, found.key.principal)))

    async def acting(self, auth: AuthContext, tenant: TenantId) -> Standing:
        there = auth.acting_for(tenant).principal
        return replace(await super().acting(auth, tenant), principal=self._tenants.principals.get((tenant, there)))


class TestBarsAtOneDoor(BrokenPrivacy):
    directory = BarsAtOneDoor
    caught_by = BARRED - {"test_a_subject_is_barred_from_the_first_call_on_and_for_good"}


class ErasesUnderWork(InprocPrivacy):
    def _runs_of(self, tenant: TenantId, subject: str) -> dict[tuple[TenantId, str, Any], RunRow]:
        found = super()._runs_of(tenant, subject)
        return {key: row for key, row in found.items() if row.run.status in TERMINAL}


class TestErasesUnderWork(BrokenPrivacy):
    broken = ErasesUnderWork
    caught_by = frozenset({"test_a_subject_with_an_open_run_keeps_everything"})


class ErasesWhatIsHeld(InprocPrivacy):
    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        in_force, self._holds.rows = self._holds.rows, {}
        try:
            return await super().erase(auth, tenant, subject)
        finally:
            self._holds.rows = in_force


class TestErasesWhatIsHeld(BrokenPrivacy):
    broken = ErasesWhatIsHeld
    caught_by = frozenset(
        {"test_what_is_held_is_not_erased", "test_a_hold_comes_into_force_in_the_midst_of_an_erasing"}
    )


class HoldsOnTheTenantOnly(InprocPrivacy):
    """Takes a hold on one for a hold on everybody."""

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        self._check(auth, tenant)
        if self._holds.of(tenant):
            subject = self._holds.of(tenant)[0].subject or subject
        return await super().erase(auth, tenant, subject)


class TestHoldsOnTheTenantOnly(BrokenPrivacy):
    broken = HoldsOnTheTenantOnly
    caught_by = frozenset({"test_a_hold_on_one_holds_nobody_else"})


class HeedlessUpkeep(InprocMaintenance):
    """Knows how long what is kept, and nothing of holds."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        super().__init__(storage, clock)
        self._holds = Holds(days=storage.table(Holds).days)


class TestHeedlessUpkeep(BrokenPrivacy):
    upkeep = HeedlessUpkeep
    caught_by = frozenset({"test_upkeep_leaves_what_is_held", "test_upkeep_goes_on_when_a_hold_is_released"})


class LavishUpkeep(InprocMaintenance):
    """Knows of holds, and nothing of how long what is kept."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        super().__init__(storage, clock)
        self._holds = Holds(rows=storage.table(Holds).rows)


class TestLavishUpkeep(BrokenPrivacy):
    upkeep = LavishUpkeep
    caught_by = frozenset(
        {
            "test_upkeep_leaves_what_is_held",
            "test_upkeep_goes_on_when_a_hold_is_released",
            "test_upkeep_removes_what_its_tenant_keeps_no_longer",
            "test_what_usage_and_the_audit_said_goes_and_they_stay",
        }
    )


class ReleasesAnothers(InprocPrivacy):
    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        owner, _ = self._holds.rows.get(hold, (tenant, None))
        return await super().release(auth, owner, hold)


class TestReleasesAnothers(BrokenPrivacy):
    broken = ReleasesAnothers
    caught_by = frozenset({"test_only_a_hold_of_the_tenant_that_is_in_force_can_be_released"})


class HoldsWithoutALimit(InprocPrivacy):
    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        in_force, self._holds.rows = self._holds.rows, {}
        try:
            return await super().hold(auth, tenant, subject, reason=reason, request=request)
        finally:
            self._holds.rows = in_force | self._holds.rows


class TestHoldsWithoutALimit(BrokenPrivacy):
    broken = HoldsWithoutALimit
    caught_by = frozenset({"test_holds_have_a_limit", "test_a_hold_is_placed_once_by_a_request"})


class HoldsTwiceForOneRequest(InprocPrivacy):
    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        del request
        return await super().hold(auth, tenant, subject, reason=reason)


class TestHoldsTwiceForOneRequest(BrokenPrivacy):
    broken = HoldsTwiceForOneRequest
    caught_by = frozenset(
        {"test_a_hold_is_placed_once_by_a_request", "test_a_request_whose_hold_was_released_holds_nothing"}
    )


class TakesAnothersHold(InprocPrivacy):
    """A key is the tenant's, whoever sends it."""

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        same = replace(auth, principal=PLATFORM.principal)
        return await super().hold(same, tenant, subject, reason=reason, request=request)


class TestTakesAnothersHold(BrokenPrivacy):
    broken = TakesAnothersHold
    caught_by = frozenset({"test_a_hold_is_placed_once_by_a_request"})


class AnswersWithAHoldThatWasReleased(InprocPrivacy):
    """As if it were in force."""

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        try:
            return await super().hold(auth, tenant, subject, reason=reason, request=request)
        except Conflict as refused:
            if refused.code != "hold_released":
                raise
            return self._holds.requested[str(refused.details["hold_id"])]


class TestAnswersWithAHoldThatWasReleased(BrokenPrivacy):
    broken = AnswersWithAHoldThatWasReleased
    caught_by = frozenset({"test_a_request_whose_hold_was_released_holds_nothing"})


class PlacesAReleasedHoldAnew(InprocPrivacy):
    """Forgets requests with their holds."""

    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        released = await super().release(auth, tenant, hold)
        self._holds.requested.pop(hold, None)
        return released


class TestPlacesAReleasedHoldAnew(BrokenPrivacy):
    broken = PlacesAReleasedHoldAnew
    caught_by = frozenset({"test_a_request_whose_hold_was_released_holds_nothing"})


class KeepsOnlyTheLastRules(InprocPrivacy):
    async def retain(self, auth: AuthContext, tenant: TenantId, days: Mapping[DataClass, int | None]) -> None:
        check_days(days)
        self._check(auth, tenant)
        if changes(self._holds.days.get(tenant, {}), days):
            self._holds.days.pop(tenant, None)
        await super().retain(auth, tenant, days)


class TestKeepsOnlyTheLastRules(BrokenPrivacy):
    broken = KeepsOnlyTheLastRules
    caught_by = frozenset({"test_rules_are_given_back_and_taken_back"})


class AnybodyMay(InprocPrivacy):
    def _check(self, auth: AuthContext, tenant: TenantId) -> None:
        super()._check(replace(auth, scopes=PLATFORM.scopes), tenant)


class TestAnybodyMay(BrokenPrivacy):
    broken = AnybodyMay
    caught_by = frozenset({"test_nobody_but_the_platform_may"})


class KnowsEveryTenant(InprocPrivacy):
    def _check(self, auth: AuthContext, tenant: TenantId) -> None:  # noqa: ARG002 - the port names them
        auth.require("admin:platform")


class TestKnowsEveryTenant(BrokenPrivacy):
    broken = KnowsEveryTenant
    caught_by = frozenset({"test_a_tenant_that_is_not_there_is_not_found"})


class TellsNobody(InprocPrivacy):
    async def _note(self, auth: AuthContext, tenant: TenantId, action: str, subject: str, detail: str = "") -> None:
        if action.startswith("subject."):
            await super()._note(auth, tenant, action, subject, detail)


class TestTellsNobody(BrokenPrivacy):
    broken = TellsNobody
    caught_by = frozenset(
        {
            "test_a_hold_is_placed_once_by_a_request",
            "test_a_request_whose_hold_was_released_holds_nothing",
            "test_the_audit_tells_of_each_change_once",
        }
    )
