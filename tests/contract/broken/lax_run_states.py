"""Broken run states: those that keep no limits, or keep them wrongly."""

from datetime import datetime, timedelta

import anyio.lowlevel

from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import KeyScope
from conformance.people import ACME, GLOBEX
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import RunId, TenantId, WorkerId
from ports.run_state import Created, Idempotency, NewRun, Orphan, Run
from tests.contract.broken.run_states import BrokenRunState

RATE = frozenset(
    {
        "test_of_racing_creations_exactly_the_entitled_ones_are_accepted",
        "test_after_the_named_wait_the_rate_has_room_for_one_again",
        "test_a_rate_that_was_not_used_is_saved_up_for_a_minute_only",
        "test_a_refusal_uses_up_neither_key_nor_room",
        "test_racing_repeats_use_up_what_one_does",
        "test_a_fork_needs_room_like_any_other_run",
    }
)


class KnowsNoRate(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        self._runs.used_until.pop(tenant, None)
        super()._admit(tenant, now)


class TestKnowsNoRate(BrokenRunState):
    broken = KnowsNoRate
    caught_by = RATE


class SavesTheRateUp(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        until = self._runs.used_until.get(tenant, now)
        super()._admit(tenant, now)
        if until < now:
            self._runs.used_until[tenant] = until


class TestSavesTheRateUp(BrokenRunState):
    broken = SavesTheRateUp
    caught_by = frozenset({"test_a_rate_that_was_not_used_is_saved_up_for_a_minute_only"})


class SaysNoWait(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        try:
            super()._admit(tenant, now)
        except ResourceExhausted as error:
            raise ResourceExhausted(error.message, code=error.code) from error


class TestSaysNoWait(BrokenRunState):
    broken = SaysNoWait
    caught_by = frozenset(
        {
            "test_of_racing_creations_exactly_the_entitled_ones_are_accepted",
            "test_after_the_named_wait_the_rate_has_room_for_one_again",
        }
    )


class PaysForRefusals(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        try:
            super()._admit(tenant, now)
        except ResourceExhausted:
            self._runs.used_until[tenant] = max(self._runs.used_until.get(tenant, now), now) + timedelta(seconds=30)
            raise


class TestPaysForRefusals(BrokenRunState):
    broken = PaysForRefusals
    caught_by = frozenset(
        {
            "test_after_the_named_wait_the_rate_has_room_for_one_again",
            "test_a_refusal_uses_up_neither_key_nor_room",
            "test_of_racing_creations_exactly_the_entitled_ones_are_accepted",
            "test_a_backlog_limit_that_was_lowered_holds_for_what_is_queued_already",
            "test_a_fork_needs_room_like_any_other_run",
        }
    )


class BurnsTheKey(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        try:
            return await super().create(auth, new)
        except ResourceExhausted:
            row = next(iter(self._runs.rows.values()))
            self._runs.keys[KeyScope.of(auth, new.idempotency)] = (new.idempotency.fingerprint, row)
            raise


class TestBurnsTheKey(BrokenRunState):
    broken = BurnsTheKey
    caught_by = frozenset({"test_a_refusal_uses_up_neither_key_nor_room"})


class AdmitsBeforeItRecalls(InprocRunState):
    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        if self._runs.keyed(auth, new.idempotency) is not None:
            self._admit(auth.tenant, self._clock.now())
        return await super().create(auth, new)


class TestAdmitsBeforeItRecalls(BrokenRunState):
    broken = AdmitsBeforeItRecalls
    caught_by = frozenset(
        {"test_a_repeat_is_never_refused_and_uses_nothing_up", "test_racing_repeats_use_up_what_one_does"}
    )


class LooksAndThenCreates(InprocRunState):
    """Decides on what it saw a moment ago."""

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        used = self._runs.used_until.get(auth.tenant)
        queued = self._runs.count(auth.tenant, "queued")
        await anyio.lowlevel.checkpoint()
        if queued < self._tenants.entitlements(auth.tenant).max_queued_runs:
            now_used, self._runs.used_until = self._runs.used_until, {}
            if used is not None:
                self._runs.used_until[auth.tenant] = used
            try:
                return await self._unlimited(auth, new)
            finally:
                self._runs.used_until = {**now_used, **self._runs.used_until}
        return await super().create(auth, new)

    async def _unlimited(self, auth: AuthContext, new: NewRun) -> Created:
        return await LooksAtTheRateOnly(self._store, self._clock).create(auth, new)


class LooksAtTheRateOnly(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        try:
            super()._admit(tenant, now)
        except ResourceExhausted as error:
            if error.code == "rate_limited":
                raise


class TestLooksAndThenCreates(BrokenRunState):
    broken = LooksAndThenCreates
    caught_by = frozenset(
        {
            "test_of_racing_creations_exactly_the_entitled_ones_are_accepted",
            "test_a_rate_that_was_not_used_is_saved_up_for_a_minute_only",
            "test_racing_repeats_use_up_what_one_does",
            "test_a_backlog_limit_that_was_lowered_holds_for_what_is_queued_already",
        }
    )


class TestKnowsNoBacklog(BrokenRunState):
    broken = LooksAtTheRateOnly
    caught_by = frozenset(
        {
            "test_of_racing_creations_exactly_the_entitled_ones_are_accepted",
            "test_a_backlog_has_room_again_when_a_run_was_started_or_cancelled",
            "test_a_run_handed_back_is_queued_like_any_other",
            "test_a_refusal_uses_up_neither_key_nor_room",
            "test_racing_repeats_use_up_what_one_does",
            "test_a_backlog_limit_that_was_lowered_holds_for_what_is_queued_already",
            "test_a_fork_needs_room_like_any_other_run",
        }
    )


class AdmitsAnyFork(InprocRunState):
    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        return await AdmitsAnybody(self._store, self._clock).fork(auth, run_id, at, idempotency)


class AdmitsAnybody(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        pass


class TestAdmitsAnyFork(BrokenRunState):
    broken = AdmitsAnyFork
    caught_by = frozenset({"test_a_fork_needs_room_like_any_other_run"})


class SharesTheRate(InprocRunState):
    def _admit(self, tenant: TenantId, now: datetime) -> None:
        super()._admit(tenant, now)
        self._runs.used_until = dict.fromkeys((ACME.tenant, GLOBEX.tenant), self._runs.used_until[tenant])


class TestSharesTheRate(BrokenRunState):
    broken = SharesTheRate
    caught_by = frozenset({"test_one_tenants_limit_is_no_others"})


class CountsEverybody(InprocRunState):
    def _full(self, tenant: TenantId) -> bool:
        most = self._tenants.entitlements(tenant).max_active_runs
        return sum(row.run.status == "running" for row in self._runs.rows.values()) >= most


class TestCountsEverybody(BrokenRunState):
    broken = CountsEverybody
    caught_by = frozenset({"test_one_tenants_running_runs_take_no_others_room"})


class ClaimsBeyondTheLimit(InprocRunState):
    def _full(self, tenant: TenantId) -> bool:
        del tenant
        return False


class TestClaimsBeyondTheLimit(BrokenRunState):
    broken = ClaimsBeyondTheLimit
    caught_by = frozenset(
        {
            "test_of_racing_claims_exactly_the_entitled_ones_succeed",
            "test_a_refused_run_stays_as_it_was_and_is_claimed_when_another_has_ended",
            "test_a_run_handed_back_makes_room_for_another",
            "test_taking_a_run_over_needs_no_room_and_makes_none",
            "test_a_limit_that_was_lowered_holds_as_soon_as_enough_has_ended",
            "test_one_tenants_running_runs_take_no_others_room",
            "test_what_a_tenant_has_no_room_for_is_no_orphan_until_it_has",
            "test_a_lapsed_run_of_a_tenant_without_room_is_an_orphan",
            "test_a_waiting_run_leaves_its_place_to_another",
        }
    )


class RefusesTakeovers(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        if self._full(auth.tenant) and not self._runs.held(self._runs.row(auth, run_id), self._clock.now()):
            raise ResourceExhausted("no room", code="concurrency_limited", retry_after=timedelta(seconds=1))
        return await super().claim(auth, run_id, worker)


class TestRefusesTakeovers(BrokenRunState):
    broken = RefusesTakeovers
    caught_by = frozenset({"test_taking_a_run_over_needs_no_room_and_makes_none"})


class ClaimsWhatItRefuses(InprocRunState):
    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        try:
            return await super().claim(auth, run_id, worker)
        except ResourceExhausted:
            await self.cancel(auth, run_id, reason="no room")
            raise


class TestClaimsWhatItRefuses(BrokenRunState):
    broken = ClaimsWhatItRefuses
    caught_by = frozenset(
        {
            "test_a_refused_run_stays_as_it_was_and_is_claimed_when_another_has_ended",
            "test_a_limit_that_was_lowered_holds_as_soon_as_enough_has_ended",
            "test_a_waiting_run_leaves_its_place_to_another",
        }
    )


class NamesWhatNobodyCanClaim(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        return await Roomy(self._store, self._clock).orphans(auth, queued_for=queued_for, limit=limit)


class Roomy(InprocRunState):
    def _full(self, tenant: TenantId) -> bool:
        del tenant
        return False


class TestNamesWhatNobodyCanClaim(BrokenRunState):
    broken = NamesWhatNobodyCanClaim
    caught_by = frozenset(
        {
            "test_what_a_tenant_has_no_room_for_is_no_orphan_until_it_has",
            "test_a_lapsed_run_of_a_tenant_without_room_is_an_orphan",
        }
    )


class HidesTenantsWithoutRoom(InprocRunState):
    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        found = await super().orphans(auth, queued_for=queued_for, limit=limit)
        return tuple(one for one in found if not self._full(one.requester.tenant))


class TestHidesTenantsWithoutRoom(BrokenRunState):
    broken = HidesTenantsWithoutRoom
    caught_by = frozenset({"test_a_lapsed_run_of_a_tenant_without_room_is_an_orphan"})
