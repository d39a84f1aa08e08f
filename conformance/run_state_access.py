"""RunState: who sees which runs, listings, and what the sweeper finds."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, new_run, telling
from conformance.harness import RunStateHarness
from conformance.people import ACME, ACME_LAB, FOREIGNERS, GLOBEX, NODE, Foreigner
from conformance.run_state_claims import ANN, LEASE, claimed, count_runs, create
from conformance.run_state_verbs import DONE, fork_key, resolve_key
from ports.context import AuthContext
from ports.cursor import encode_cursor
from ports.errors import InvalidArgument, NotFound, PermissionDenied
from ports.ids import AgentId, RunId
from ports.run_state import Orphan, RunFilter, RunStatePort

ABSENT: Final = RunId("run_" + "0" * 32)
NO_ID: Final = RunId("not an id of ours")

Call = Callable[[RunStatePort, AuthContext, RunId], Awaitable[object]]
CALLS: Final[dict[str, Call]] = {
    "load": lambda state, auth, run: state.load(auth, run),
    "steps": lambda state, auth, run: state.steps(auth, run),
    "claim": lambda state, auth, run: state.claim(auth, run, ANN),
    "append": lambda state, auth, run: state.append(auth, run, 1, telling("step.started")),
    "release": lambda state, auth, run: state.release(auth, run, 1),
    "cancel": lambda state, auth, run: state.cancel(auth, run, reason="mine now"),
    "fork": lambda state, auth, run: state.fork(auth, run, 0, fork_key()),
    "resolve": lambda state, auth, run: state.resolve(auth, run, 1, DONE, resolve_key()),
}


async def listed(state: RunStatePort, auth: AuthContext, where: RunFilter | None = None) -> list[RunId]:
    return [run.id for run in (await state.list_runs(auth, where or RunFilter(), limit=200)).items]


@pytest.mark.anyio
class RunStateIsolation(Contract):
    @clause("RUN-12")
    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_a_foreign_run_is_refused_like_an_absent_one(
        self, harness: RunStateHarness, call: str, foreigner: Foreigner
    ) -> None:
        state = await harness.open()
        run = await claimed(state)

        with pytest.raises(NotFound) as foreign:
            await CALLS[call](state, foreigner.auth, run.id)
        with pytest.raises(NotFound) as absent:
            await CALLS[call](state, foreigner.auth, ABSENT)
        with pytest.raises(NotFound) as impossible:
            await CALLS[call](state, foreigner.auth, NO_ID)

        texts = {foreign.value.message.replace(run.id, "…"), absent.value.message.replace(ABSENT, "…")}
        assert texts == {impossible.value.message.replace(NO_ID, "…")}
        assert foreign.value.details == absent.value.details
        assert await state.load(ACME, run.id) == run

    @clause("RUN-12")
    async def test_a_listing_shows_the_callers_tenant_and_namespace_only(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        mine = await create(state, ACME)
        lab = await create(state, ACME_LAB)
        other = await create(state, GLOBEX)

        assert await listed(state, ACME) == [mine.id]
        assert await listed(state, ACME_LAB) == [lab.id]
        assert await listed(state, GLOBEX) == [other.id]

    @clause("RUN-12")
    async def test_a_foreign_key_is_another_key(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        first = await state.create(ACME, new_run(idempotency("key-1")))

        elsewhere = [
            await state.create(auth, new_run(idempotency("key-1", fingerprint=f"sha256:{auth.namespace}")))
            for auth in (GLOBEX, ACME_LAB)
        ]

        assert all(one.created for one in elsewhere)
        assert first.run.id not in {one.run.id for one in elsewhere}


@pytest.mark.anyio
class RunStateListing(Contract):
    @clause("RUN-13")
    async def test_a_listing_gives_the_newest_first(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        created = [(await create(state)).id for _ in range(4)]

        assert await listed(state, ACME) == created[::-1]

    @clause("RUN-13")
    async def test_following_the_cursor_visits_every_run_once_whatever_is_created_meanwhile(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        created = [(await create(state)).id for _ in range(7)]
        visited: list[RunId] = []

        page = await state.list_runs(ACME, RunFilter(), limit=3)
        visited += [run.id for run in page.items]
        while page.next_cursor is not None:
            await create(state)
            page = await state.list_runs(ACME, RunFilter(), limit=3, cursor=page.next_cursor)
            visited += [run.id for run in page.items]

        assert visited == created[::-1]

    @clause("RUN-13")
    async def test_a_last_page_that_is_full_has_no_cursor(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        for _ in range(4):
            await create(state)

        first = await state.list_runs(ACME, RunFilter(), limit=2)
        second = await state.list_runs(ACME, RunFilter(), limit=2, cursor=first.next_cursor)

        assert first.next_cursor is not None
        assert len(second.items) == 2
        assert second.next_cursor is None

    @clause("RUN-13")
    async def test_a_filter_keeps_the_runs_that_match(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        queued = await create(state)
        running = await claimed(state)
        other = (await state.create(ACME, new_run(agent_id=AgentId("agt_other")))).run

        assert await listed(state, ACME, RunFilter(status="running")) == [running.id]
        assert await listed(state, ACME, RunFilter(status="queued")) == [other.id, queued.id]
        assert await listed(state, ACME, RunFilter(status="queued", agent_id=other.agent_id)) == [other.id]

    @clause("RUN-13")
    @pytest.mark.parametrize(
        "cursor",
        ["", "nonsense", "é", "\x00", "AAAA", encode_cursor("somewhere else", ["run_1"]), encode_cursor("runs", 7)],
    )
    async def test_a_cursor_that_can_not_be_ours_is_refused(self, harness: RunStateHarness, cursor: str) -> None:
        state = await harness.open()
        await create(state)

        with pytest.raises(InvalidArgument):
            await state.list_runs(ACME, RunFilter(), limit=1, cursor=cursor)

    @clause("RUN-13", "RUN-12")
    async def test_another_tenants_cursor_shows_nothing_of_it(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        mine = [(await create(state, GLOBEX)).id for _ in range(2)]
        for _ in range(3):
            await create(state, ACME)
        foreign = (await state.list_runs(ACME, RunFilter(), limit=1)).next_cursor

        page = await state.list_runs(GLOBEX, RunFilter(), limit=10, cursor=foreign)

        assert {run.id for run in page.items} <= set(mine)


@pytest.mark.anyio
class RunStateOrphans(Contract):
    @clause("RUN-14")
    async def test_orphans_are_runs_queued_for_too_long_and_runs_of_lapsed_workers(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        lapsed = await claimed(state, GLOBEX)
        queued = await create(state, ACME)
        ended = await claimed(state, ACME)
        await state.append(ACME, ended.id, ended.epoch, SUCCEEDED)

        at_first = await state.orphans(NODE, queued_for=LEASE, limit=10)
        await harness.advance(2 * LEASE)
        await create(state, ACME)
        later = await state.orphans(NODE, queued_for=LEASE, limit=10)

        assert at_first == ()
        assert later == (
            Orphan(requester=GLOBEX, run_id=lapsed.id),
            Orphan(requester=ACME, run_id=queued.id),
        )

    @clause("RUN-14")
    async def test_no_more_orphans_are_named_than_asked_for(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        runs = [await create(state) for _ in range(3)]
        await harness.advance(LEASE)

        orphans = await state.orphans(NODE, queued_for=timedelta(seconds=1), limit=2)

        assert [one.run_id for one in orphans] == [run.id for run in runs[:2]]

    @clause("RUN-14")
    async def test_a_run_of_a_live_worker_is_no_orphan(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await claimed(state)
        await harness.advance(LEASE / 2)
        await state.renew(NODE, ANN, LEASE)
        await harness.advance(LEASE / 2)

        assert await state.orphans(NODE, queued_for=timedelta(0), limit=10) == ()

    @clause("RUN-14")
    async def test_orphans_needs_its_scope(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await create(state)

        with pytest.raises(PermissionDenied):
            await state.orphans(ACME, queued_for=timedelta(0), limit=10)

        assert await count_runs(state) == 1
