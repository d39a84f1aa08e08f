"""Broken administrations."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc.administration import InprocAdministration
from adapters.inproc.store import store
from conformance.administration import AdministrationContract
from conformance.people import PLATFORM
from ports.administration import Administration, Erased
from ports.context import AuthContext
from ports.errors import NotFound
from ports.ids import RunId, TenantId
from ports.run_state import TERMINAL, NewEvent, Run
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocAdministrationHarness, closing


class BrokenHarness(InprocAdministrationHarness):
    def __init__(self, broken: type[InprocAdministration]) -> None:
        super().__init__()
        self._broken = broken

    async def open(self) -> Administration:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> Administration:
        return self._broken(store(self.config.name), self.clock)


class BrokenAdministration(Mutant, AdministrationContract):
    broken: ClassVar[type[InprocAdministration]] = InprocAdministration

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenHarness]:
        async with closing(BrokenHarness(self.broken)) as harness:
            yield harness


class TestIsHonest(BrokenAdministration):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class AnybodyMay(InprocAdministration):
    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        everybody = replace(auth, scopes=PLATFORM.scopes)
        return await super().kill(everybody, tenant, run_id, reason=reason, namespace=namespace)


class TestAnybodyMay(BrokenAdministration):
    broken = AnybodyMay
    caught_by = frozenset({"test_nobody_but_the_platform_may"})


class KillsPolitely(InprocAdministration):
    """Leaves a run that a worker holds to its worker."""

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        row = self._runs.row(replace(auth, tenant=tenant, namespace=namespace), run_id)
        if row.run.status == "running":
            row.run = replace(row.run, cancel_requested_at=self._clock.now())
            return row.run
        return await super().kill(auth, tenant, run_id, reason=reason, namespace=namespace)


class TestKillsPolitely(BrokenAdministration):
    broken = KillsPolitely
    caught_by = frozenset({"test_a_held_run_ends_at_once"})


class KillsTwice(InprocAdministration):
    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        row = self._runs.row(replace(auth, tenant=tenant, namespace=namespace), run_id)
        if row.run.status in TERMINAL:
            row.record(self._store, auth, self._clock.now(), NewEvent(type="run.cancelled", data={"reason": reason}))
            return row.run
        return await super().kill(auth, tenant, run_id, reason=reason, namespace=namespace)


class TestKillsTwice(BrokenAdministration):
    broken = KillsTwice
    caught_by = frozenset({"test_a_run_that_is_over_stays_as_it_is"})


class LooksEverywhere(InprocAdministration):
    """Finds a run whatever tenant and namespace are named."""

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        for whose, where, known in self._runs.rows:
            if known == run_id:
                tenant, namespace = whose, where
        return await super().kill(auth, tenant, run_id, reason=reason, namespace=namespace)


class TestLooksEverywhere(BrokenAdministration):
    broken = LooksEverywhere
    caught_by = frozenset({"test_a_run_is_found_where_it_is"})


class ErasesWhoIsAtWork(InprocAdministration):
    def _check(self, tenant: TenantId) -> None:
        if tenant not in self._tenants.rows:
            raise NotFound("there is no such tenant")


class TestErasesWhoIsAtWork(BrokenAdministration):
    broken = ErasesWhoIsAtWork
    caught_by = frozenset({"test_who_is_still_at_work_is_not_erased"})


class ErasesAnything(InprocAdministration):
    def _check(self, tenant: TenantId) -> None:
        if tenant in self._tenants.rows:
            super()._check(tenant)


class TestErasesAnything(BrokenAdministration):
    broken = ErasesAnything
    caught_by = frozenset({"test_a_tenant_that_never_was_is_not_there"})


class ErasesAtOnce(InprocAdministration):
    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        removed = 0
        while True:
            erased = await super().erase(auth, tenant, export_sha256=export_sha256, limit=limit)
            removed += erased.removed
            if erased.done:
                return Erased(removed=removed, done=True)


class TestErasesAtOnce(BrokenAdministration):
    broken = ErasesAtOnce
    caught_by = frozenset({"test_all_of_a_tenant_goes_in_batches"})


class ErasesOthersRuns(InprocAdministration):
    def _remove_one(self, tenant: TenantId) -> bool:
        self._runs.rows.clear()
        return super()._remove_one(tenant)


class TestErasesOthersRuns(BrokenAdministration):
    broken = ErasesOthersRuns
    caught_by = frozenset({"test_others_keep_what_is_theirs", "test_all_of_a_tenant_goes_in_batches"})


class ForgetsWhoWas(InprocAdministration):
    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        erased = await super().erase(auth, tenant, export_sha256=export_sha256, limit=limit)
        if erased.done:
            del self._tenants.erased[tenant]
        return erased


class TestForgetsWhoWas(BrokenAdministration):
    broken = ForgetsWhoWas
    caught_by = frozenset({"test_an_id_is_used_once", "test_the_export_of_the_first_call_is_kept"})


class KeepsTheLastExport(InprocAdministration):
    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        erased = await super().erase(auth, tenant, export_sha256=export_sha256, limit=limit)
        self._tenants.erased[tenant] = export_sha256
        return erased


class TestKeepsTheLastExport(BrokenAdministration):
    broken = KeepsTheLastExport
    caught_by = frozenset({"test_the_export_of_the_first_call_is_kept"})
