"""Broken maintenance ports."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import maintenance
from adapters.inproc.maintenance import InprocMaintenance, is_due
from adapters.inproc.runs import RunRow
from adapters.inproc.store import store
from conformance.maintenance import MaintenanceContract
from conformance.people import ACME
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.maintenance import MIN_RETENTION, MaintenancePort, Upkeep
from ports.run_state import TERMINAL
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocMaintenanceHarness, closing


class BrokenMaintenanceHarness(InprocMaintenanceHarness):
    def __init__(self, broken: type[InprocMaintenance]) -> None:
        super().__init__()
        self._broken = broken

    async def reopen(self) -> MaintenancePort:
        return self._broken(store(self.config.name), self.clock)


class BrokenMaintenance(Mutant, MaintenanceContract):
    broken: ClassVar[type[InprocMaintenance]] = InprocMaintenance
    replaced: ClassVar[dict[str, Any]] = {}
    """Names of `adapters.inproc.maintenance` that are broken instead of the class."""

    @pytest.fixture
    async def harness(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokenMaintenanceHarness]:
        for name, value in self.replaced.items():
            monkeypatch.setattr(maintenance, name, value)
        async with closing(BrokenMaintenanceHarness(self.broken)) as harness:
            yield harness


class TestIsHonest(BrokenMaintenance):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class AsksForNoScope(InprocMaintenance):
    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        return await super().upkeep(replace(auth, scopes=frozenset({RUNS_ANY_TENANT})), retention=retention)


class TestAsksForNoScope(BrokenMaintenance):
    broken = AsksForNoScope
    caught_by = frozenset({"test_upkeep_needs_its_scope"})


def of_one_tenant(row: RunRow, now: datetime, retention: timedelta) -> bool:
    return row.run.tenant == ACME.tenant and is_due(row, now, retention)


class TestServesOneTenant(BrokenMaintenance):
    replaced: ClassVar = {"is_due": of_one_tenant}
    caught_by = frozenset(
        {
            "test_old_runs_of_every_tenant_and_namespace_go",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


class KeepsKeys(InprocMaintenance):
    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        keys = self._runs.keys
        found = await super().upkeep(auth, retention=retention)
        self._runs.keys = keys
        return found


class TestKeepsKeys(BrokenMaintenance):
    broken = KeepsKeys
    caught_by = frozenset({"test_an_old_run_is_gone_with_all_that_was_its"})


def whatever_is_old(row: RunRow, now: datetime, retention: timedelta) -> bool:
    return now - row.run.created_at > retention


class TestRemovesOpenRuns(BrokenMaintenance):
    replaced: ClassVar = {"is_due": whatever_is_old}
    caught_by = frozenset(
        {
            "test_an_open_run_stays_however_old_it_is",
            "test_a_run_that_ended_lately_stays_readable_for_a_while",
        }
    )


def whatever_has_ended(row: RunRow, _now: datetime, _retention: timedelta) -> bool:
    return row.run.status in TERMINAL


class TestRemovesYoungRuns(BrokenMaintenance):
    replaced: ClassVar = {"is_due": whatever_has_ended}
    caught_by = frozenset(
        {
            "test_a_run_younger_than_the_retention_stays_with_its_key",
            "test_a_run_that_ended_lately_stays_readable_for_a_while",
            "test_callers_at_once_remove_and_count_each_run_once",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


def nothing(row: RunRow, now: datetime, retention: timedelta) -> bool:
    return is_due(row, now, retention) and now - row.run.created_at < MIN_RETENTION


class TestRemovesNothing(BrokenMaintenance):
    replaced: ClassVar = {"is_due": nothing}
    caught_by = frozenset(
        {
            "test_old_runs_of_every_tenant_and_namespace_go",
            "test_an_old_run_is_gone_with_all_that_was_its",
            "test_a_run_younger_than_the_retention_stays_with_its_key",
            "test_a_run_that_ended_lately_stays_readable_for_a_while",
            "test_upkeep_comes_to_an_end_and_then_has_nothing_to_do",
            "test_callers_at_once_remove_and_count_each_run_once",
            "test_a_fork_outlives_the_run_it_comes_from_with_its_journal",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


class TestTakesAnyRetention(BrokenMaintenance):
    replaced: ClassVar = {"check_retention": lambda _: None}
    caught_by = frozenset({"test_a_retention_that_is_too_short_is_refused"})


class NeverDone(InprocMaintenance):
    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        return replace(await super().upkeep(auth, retention=retention), more=True)


class TestNeverDone(BrokenMaintenance):
    broken = NeverDone
    caught_by = frozenset(
        {
            "test_requests_go_when_their_time_is_over_and_not_before",
            "test_texts_go_when_their_time_is_over_and_their_records_stay",
            "test_replies_go_when_their_time_is_over",
            "test_old_runs_of_every_tenant_and_namespace_go",
            "test_an_old_run_is_gone_with_all_that_was_its",
            "test_an_open_run_stays_however_old_it_is",
            "test_a_run_younger_than_the_retention_stays_with_its_key",
            "test_a_run_that_ended_lately_stays_readable_for_a_while",
            "test_upkeep_comes_to_an_end_and_then_has_nothing_to_do",
            "test_callers_at_once_remove_and_count_each_run_once",
            "test_a_fork_outlives_the_run_it_comes_from_with_its_journal",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


class CountsWhatIsLeft(InprocMaintenance):
    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        found = await super().upkeep(auth, retention=retention)
        return replace(found, runs_removed=found.runs_removed + len(self._runs.rows))


class TestCountsWhatIsLeft(BrokenMaintenance):
    broken = CountsWhatIsLeft
    caught_by = frozenset(
        {
            "test_an_open_run_stays_however_old_it_is",
            "test_a_run_younger_than_the_retention_stays_with_its_key",
            "test_a_run_that_ended_lately_stays_readable_for_a_while",
            "test_callers_at_once_remove_and_count_each_run_once",
            "test_a_fork_outlives_the_run_it_comes_from_with_its_journal",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


class TakesEqualBodiesAlong(InprocMaintenance):
    """Bodies are shared, and nobody counts who needs them."""

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        now = self._clock.now()
        gone = [row.run.input for row in self._runs.rows.values() if is_due(row, now, retention)]
        found = await super().upkeep(auth, retention=retention)
        for row in self._runs.rows.values():
            if isinstance(row.run.input, str) and row.run.input in gone:
                row.run = replace(row.run, input=None)
        return found


class TestTakesEqualBodiesAlong(BrokenMaintenance):
    broken = TakesEqualBodiesAlong
    caught_by = frozenset(
        {
            "test_a_fork_outlives_the_run_it_comes_from_with_its_journal",
            "test_equal_bodies_of_other_runs_stay",
        }
    )


class KeepsRequests(InprocMaintenance):
    def _forget_requests(self, now: datetime, retention: timedelta) -> None:
        pass


class TestKeepsRequests(BrokenMaintenance):
    broken = KeepsRequests
    caught_by = frozenset(
        {
            "test_requests_go_when_their_time_is_over_and_not_before",
            "test_texts_go_when_their_time_is_over_and_their_records_stay",
            "test_replies_go_when_their_time_is_over",
        }
    )


class ForgetsRequestsEarly(InprocMaintenance):
    def _forget_requests(self, now: datetime, retention: timedelta) -> None:
        super()._forget_requests(now + timedelta(days=1), retention)


class TestForgetsRequestsEarly(BrokenMaintenance):
    broken = ForgetsRequestsEarly
    caught_by = frozenset({"test_requests_go_when_their_time_is_over_and_not_before"})
