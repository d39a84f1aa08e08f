"""RunState: how urgent a run is among its tenant's own, and what a waiting run waits for."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, new_run
from conformance.harness import RunStateHarness
from conformance.people import ACME, GLOBEX, NODE
from conformance.run_state_claims import ANN, BOB, LEASE, claimed, count_runs
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import RunId
from ports.priority import DEFAULT, HIGHEST, LOWEST
from ports.run_state import Awaited, Change, NewEvent, Run, RunStatePort, RunStatus

SECOND = timedelta(seconds=1)
OTHERS: tuple[Awaited, ...] = ("approval", "timer", "peer")


async def made(state: RunStatePort, priority: int, auth: AuthContext = ACME) -> Run:
    return (await state.create(auth, replace(new_run(), priority=priority))).run


async def named(state: RunStatePort, limit: int) -> list[RunId]:
    return [one.run_id for one in await state.orphans(NODE, queued_for=SECOND, limit=limit)]


def waiting_for(what: Awaited) -> Change:
    return Change(status="waiting", waits_for=what, events=(NewEvent(type="run.waiting"),))


@pytest.mark.anyio
class RunStatePriority(Contract):
    @clause("RUN-35")
    async def test_a_run_keeps_the_priority_it_was_created_with(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        urgent, plain = await made(state, HIGHEST), (await state.create(ACME, new_run())).run
        await state.renew(NODE, BOB, LEASE)

        held = await state.claim(ACME, urgent.id, BOB)
        await state.append(ACME, urgent.id, held.epoch, SUCCEEDED)

        assert (urgent.priority, held.priority, plain.priority) == (HIGHEST, HIGHEST, DEFAULT)
        assert (await state.load(ACME, urgent.id)).priority == HIGHEST

    @clause("RUN-35")
    async def test_a_fork_has_the_priority_of_the_run_it_comes_from(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        source = await made(state, LOWEST)

        fork = (await state.fork(ACME, source.id, 0, idempotency())).run

        assert fork.priority == LOWEST

    @clause("RUN-35")
    async def test_of_a_tenants_queued_runs_the_more_urgent_are_named_first(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        low, middle, high, higher = [await made(state, n) for n in (LOWEST, DEFAULT, HIGHEST, HIGHEST)]
        await harness.advance(2 * SECOND)
        await made(state, HIGHEST)  # not queued for long enough

        assert await named(state, 2) == [high.id, higher.id]
        assert await named(state, 10) == [high.id, higher.id, middle.id, low.id]

    @clause("RUN-35")
    async def test_a_tenants_priorities_take_no_places_of_others(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        first, theirs = await made(state, LOWEST), await made(state, LOWEST, GLOBEX)
        urgent = await made(state, HIGHEST)
        await harness.advance(2 * SECOND)

        assert await named(state, 2) == [urgent.id, theirs.id]
        assert await named(state, 3) == [urgent.id, theirs.id, first.id]

    @clause("RUN-35")
    async def test_a_run_whose_worker_is_gone_keeps_its_place(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        lost = await claimed(state)
        queued = await made(state, HIGHEST)
        await harness.advance(2 * LEASE)

        assert await named(state, 1) == [lost.id]
        assert await named(state, 2) == [lost.id, queued.id]

    @clause("RUN-35")
    @pytest.mark.parametrize("priority", [LOWEST - 1, HIGHEST + 1])
    async def test_what_is_no_priority_is_refused_and_nothing_created(
        self, harness: RunStateHarness, priority: int
    ) -> None:
        state = await harness.open()

        with pytest.raises(InvalidArgument):
            await made(state, priority)

        assert await count_runs(state) == 0


@pytest.mark.anyio
class RunStateAwaited(Contract):
    @clause("RUN-36")
    @pytest.mark.parametrize("what", ["child", *OTHERS])
    async def test_a_waiting_run_tells_what_it_waits_for(self, harness: RunStateHarness, what: Awaited) -> None:
        state = await harness.open()
        run = await claimed(state)

        await state.append(ACME, run.id, run.epoch, waiting_for(what))

        waiting = await state.load(ACME, run.id)
        assert (waiting.status, waiting.waits_for, waiting.worker) == ("waiting", what, None)

    @clause("RUN-36")
    async def test_a_run_that_waits_no_more_waits_for_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run, other = await claimed(state), await claimed(state)
        for one in (run, other):
            await state.append(ACME, one.id, one.epoch, waiting_for("child"))

        await state.wake(ACME, run.id)
        cancelled = await state.cancel(ACME, other.id, reason="enough")

        woken = await state.load(ACME, run.id)
        assert (woken.status, woken.waits_for) == ("queued", None)
        assert (cancelled.status, cancelled.waits_for) == ("cancelled", None)

    @clause("RUN-36")
    @pytest.mark.parametrize(
        ("status", "what"), [("waiting", None), (None, "child"), ("queued", "timer"), ("needs_operator", "approval")]
    )
    async def test_what_for_comes_with_waiting_and_only_with_it(
        self, harness: RunStateHarness, status: RunStatus | None, what: Awaited | None
    ) -> None:
        state = await harness.open()
        run = await claimed(state)

        with pytest.raises(InvalidArgument):
            await state.append(ACME, run.id, run.epoch, Change(status=status, waits_for=what))

        assert (await state.load(ACME, run.id)).status == "running"

    @clause("RUN-33", "RUN-34")
    @pytest.mark.parametrize("what", OTHERS)
    async def test_who_waits_for_something_else_is_not_woken_because_it_has_no_children(
        self, harness: RunStateHarness, what: Awaited
    ) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, waiting_for(what))

        assert not await state.wake(ACME, run.id)
        assert await state.adrift(NODE, limit=10) == ()

    @clause("RUN-33", "RUN-34")
    async def test_who_waits_for_something_else_is_woken_at_its_deadline(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = (await state.create(ACME, new_run(deadline=LEASE))).run
        await state.renew(NODE, ANN, LEASE)
        held = await state.claim(ACME, run.id, ANN)
        await state.append(ACME, run.id, held.epoch, waiting_for("timer"))

        await harness.advance(2 * LEASE)

        assert [one.run_id for one in await state.adrift(NODE, limit=10)] == [run.id]
        assert await state.wake(ACME, run.id)
