"""RunState: runs that work for other runs, and runs that wait for them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, intent, new_run, result
from conformance.harness import RunStateHarness
from conformance.people import ACME, ACME_BEN, FOREIGNERS, GLOBEX, NODE, Foreigner
from conformance.run_state_admission import ONE_ACTIVE
from conformance.run_state_claims import ANN, BOB, LEASE, claimed, count_runs, create
from ports.context import AuthContext
from ports.errors import Conflict, NotFound, PermissionDenied, ResourceExhausted
from ports.ids import RunId
from ports.run_state import Adrift, Change, NewEvent, Parent, Run, RunFilter, RunStatePort, RunStatus
from ports.tenant import Entitlements

WAITING: Final = Change(status="waiting", waits_for="child", events=(NewEvent(type="run.waiting"),))
NEEDS_OPERATOR: Final = Change(status="needs_operator")
FAILED: Final = Change(status="failed", events=(NewEvent(type="run.failed"),))
CANCELLED: Final = Change(status="cancelled", events=(NewEvent(type="run.cancelled"),))
GONE: Final = RunId("run_" + "1" * 32)


def of(parent: Run, *, step: int = 1) -> Parent:
    return Parent(run_id=parent.id, step=step, depth=parent.depth + 1)


async def child(state: RunStatePort, parent: Run, auth: AuthContext = ACME) -> Run:
    return (await state.create(auth, replace(new_run(), parent=of(parent)))).run


async def move(state: RunStatePort, run: Run, change: Change, auth: AuthContext = ACME) -> None:
    """Claim the run and append `change`."""
    await state.renew(NODE, BOB, LEASE)
    held = await state.claim(auth, run.id, BOB)
    await state.append(auth, run.id, held.epoch, change)


async def waiting(state: RunStatePort, auth: AuthContext = ACME) -> Run:
    """A run that waits, as it was before that."""
    run = await claimed(state, auth)
    await state.append(auth, run.id, run.epoch, WAITING)
    return run


async def children_of(
    state: RunStatePort, auth: AuthContext, parent: Run, *, status: RunStatus | None = None
) -> Sequence[RunId]:
    page = await state.list_runs(auth, RunFilter(parent=parent.id, status=status), limit=200)
    return [run.id for run in page.items]


@pytest.mark.anyio
class RunStateLines(Contract):
    @clause("RUN-30")
    async def test_a_run_made_for_another_names_it_for_good(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        parent = await claimed(state)

        made = await child(state, parent)

        reopened = await harness.reopen()
        assert (made.parent, made.depth) == (Parent(run_id=parent.id, step=1, depth=1), 1)
        assert await reopened.load(ACME, made.id) == made
        told = await harness.event_data(ACME, made.id, 1)
        assert told["parent"] == {"run_id": parent.id, "step": 1, "depth": 1}

    @clause("RUN-30")
    async def test_a_run_that_was_asked_for_has_no_parent(self, harness: RunStateHarness) -> None:
        state = await harness.open()

        run = await create(state)

        assert (run.parent, run.depth) == (None, 0)
        assert "parent" not in await harness.event_data(ACME, run.id, 1)

    @clause("RUN-30")
    async def test_a_run_may_be_made_for_one_that_is_gone(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        line = Parent(run_id=GONE, step=7, depth=3)

        made = (await state.create(ACME, replace(new_run(), parent=line))).run

        assert (made.status, made.parent) == ("queued", line)

    @clause("RUN-30")
    async def test_a_fork_of_a_child_has_no_parent(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        made = await child(state, await claimed(state))

        fork = (await state.fork(ACME, made.id, 0, idempotency())).run

        assert (fork.parent, fork.depth) == (None, 0)

    @clause("RUN-31")
    async def test_a_runs_children_are_listed_newest_first_and_nobody_elses(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        parent, other = await claimed(state), await create(state)
        mine = [await child(state, parent) for _ in range(3)]
        await child(state, other)
        await child(state, mine[0])
        await child(state, parent, GLOBEX)

        assert await children_of(state, ACME, parent) == [run.id for run in reversed(mine)]

    @clause("RUN-31")
    async def test_children_are_listed_in_pages_and_by_status(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        parent = await claimed(state)
        first, second = await child(state, parent), await child(state, parent)
        await state.cancel(ACME, first.id, reason="")

        page = await state.list_runs(ACME, RunFilter(parent=parent.id), limit=1)
        rest = await state.list_runs(ACME, RunFilter(parent=parent.id), limit=1, cursor=page.next_cursor)

        assert [run.id for run in (*page.items, *rest.items)] == [second.id, first.id]
        assert rest.next_cursor is None
        assert await children_of(state, ACME, parent, status="queued") == [second.id]


@pytest.mark.anyio
class RunStateWaiting(Contract):
    @clause("RUN-32")
    async def test_a_waiting_run_is_held_by_nobody(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await waiting(state)

        now = await state.load(ACME, run.id)

        assert (now.status, now.worker, now.finished_at) == ("waiting", None, None)
        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, ANN)
        with pytest.raises(Conflict) as fenced:
            await state.append(ACME, run.id, run.epoch, SUCCEEDED)
        assert fenced.value.code == "fenced"
        with pytest.raises(Conflict):
            await state.release(ACME, run.id, run.epoch)
        assert await state.load(ACME, run.id) == now

    @clause("RUN-32")
    async def test_a_waiting_run_leaves_its_place_to_another(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        parent = await claimed(state)
        made = await child(state, parent)
        with pytest.raises(ResourceExhausted):
            await state.claim(ACME, made.id, ANN)

        await state.append(ACME, parent.id, parent.epoch, WAITING)

        assert (await state.claim(ACME, made.id, ANN)).status == "running"

    @clause("RUN-32")
    async def test_a_waiting_run_is_not_queued_and_no_orphan(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, Entitlements(max_queued_runs=1))
        await waiting(state)
        await harness.advance(2 * LEASE)

        assert await state.orphans(NODE, queued_for=timedelta(0), limit=10) == ()
        await create(state)
        assert await count_runs(state) == 2

    @clause("RUN-33")
    @pytest.mark.parametrize("change", [SUCCEEDED, FAILED, CANCELLED], ids=["succeeded", "failed", "cancelled"])
    async def test_a_run_whose_children_have_ended_can_be_claimed_again(
        self, harness: RunStateHarness, change: Change
    ) -> None:
        state = await harness.open()
        run = await claimed(state)
        made = await child(state, run)
        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1),)))
        await state.append(ACME, run.id, run.epoch, WAITING)
        await move(state, made, change)

        assert await state.wake(ACME, run.id)

        assert (await state.load(ACME, run.id)).status == "queued"
        held = await state.claim(ACME, run.id, ANN)
        assert (held.status, held.epoch, held.recoveries) == ("running", 2, 0)
        await state.append(ACME, run.id, held.epoch, Change(steps=(result(1),)))

    @clause("RUN-33")
    @pytest.mark.parametrize("status", ["queued", "running", "waiting", "needs_operator"])
    async def test_a_run_with_an_open_child_goes_on_waiting(self, harness: RunStateHarness, status: str) -> None:
        state = await harness.open()
        run = await waiting(state)
        ended, made = await child(state, run), await child(state, run)
        await move(state, ended, SUCCEEDED)
        if status != "queued":
            events = (NewEvent(type="step.started"),)
            move_to = {"running": Change(events=events), "waiting": WAITING, "needs_operator": NEEDS_OPERATOR}
            await move(state, made, move_to[status])
        before = await state.load(ACME, run.id)

        assert not await state.wake(ACME, run.id)

        assert await state.load(ACME, run.id) == before

    @clause("RUN-33")
    async def test_other_runs_children_keep_nobody_waiting(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run, other = await waiting(state), await create(state)
        made = await child(state, run)
        await child(state, other)
        await child(state, made)
        await move(state, made, SUCCEEDED)

        assert await state.wake(ACME, run.id)

    @clause("RUN-33")
    async def test_a_run_does_not_wait_beyond_its_deadline(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = (await state.create(ACME, new_run(deadline=timedelta(minutes=1)))).run
        await child(state, run)
        await move(state, run, WAITING)

        in_time = await state.wake(ACME, run.id)
        await harness.advance(timedelta(minutes=1))

        assert (in_time, await state.wake(ACME, run.id)) == (False, True)

    @clause("RUN-33")
    async def test_a_run_that_was_asked_to_end_before_it_waited_does_not_wait(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await child(state, run)
        await state.cancel(ACME, run.id, reason="no longer needed")
        await state.append(ACME, run.id, run.epoch, WAITING)

        assert await state.wake(ACME, run.id)

        assert (await state.claim(ACME, run.id, ANN)).cancel_requested_at is not None

    @clause("RUN-33")
    @pytest.mark.parametrize("change", [None, Change(), SUCCEEDED, NEEDS_OPERATOR])
    async def test_what_does_not_wait_is_not_woken(self, harness: RunStateHarness, change: Change | None) -> None:
        state = await harness.open()
        run = await create(state)
        if change is not None:
            await move(state, run, change)
        before = await state.load(ACME, run.id)

        assert not await state.wake(ACME, run.id)

        assert await state.load(ACME, run.id) == before

    @clause("RUN-33")
    async def test_of_many_who_wake_a_run_one_does(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await waiting(state)
        woken: list[bool] = []

        async def wake() -> None:
            woken.append(await state.wake(ACME_BEN, run.id))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(wake)

        assert sorted(woken) == [*[False] * 7, True]

    @clause("RUN-33")
    async def test_children_that_end_while_their_parent_begins_to_wait_leave_it_awake(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        run = await claimed(state)
        made = [await child(state, run) for _ in range(4)]
        await state.renew(NODE, BOB, LEASE)
        held = [await state.claim(ACME, one.id, BOB) for one in made]

        async def tell(one: Run, change: Change) -> None:
            await state.append(ACME, one.id, one.epoch, change)
            await state.wake(ACME, run.id)

        async with anyio.create_task_group() as group:
            group.start_soon(tell, run, WAITING)
            for one in held:
                group.start_soon(tell, one, SUCCEEDED)

        assert (await state.load(ACME, run.id)).status == "queued"

    @clause("RUN-33", "RUN-12")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_a_foreigner_wakes_nobody(self, harness: RunStateHarness, foreigner: Foreigner) -> None:
        state = await harness.open()
        run = await waiting(state)

        with pytest.raises(NotFound) as foreign:
            await state.wake(foreigner.auth, run.id)
        with pytest.raises(NotFound) as absent:
            await state.wake(foreigner.auth, GONE)

        assert str(foreign.value).replace(run.id, GONE) == str(absent.value)
        assert (await state.load(ACME, run.id)).status == "waiting"


@pytest.mark.anyio
class RunStateAdrift(Contract):
    @clause("RUN-34")
    async def test_runs_that_wait_for_nothing_any_more_are_to_be_woken(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        done, waits, elsewhere = await waiting(state), await waiting(state), await waiting(state, GLOBEX)
        await move(state, await child(state, done), SUCCEEDED)
        await child(state, waits)
        await create(state)
        await claimed(state)

        found = await state.adrift(NODE, limit=10)

        assert found == (
            Adrift(requester=ACME, run_id=done.id, due="wake"),
            Adrift(requester=GLOBEX, run_id=elsewhere.id, due="wake"),
        )
        for one in found:
            assert await state.wake(one.requester, one.run_id)
        assert await state.adrift(NODE, limit=10) == ()

    @clause("RUN-34")
    async def test_a_deadline_and_a_wish_to_end_are_reasons_to_wake_a_run(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        late = (await state.create(ACME, new_run(deadline=timedelta(minutes=1)))).run
        await move(state, late, WAITING)
        asked = await claimed(state)
        await state.cancel(ACME, asked.id, reason="")
        await state.append(ACME, asked.id, asked.epoch, WAITING)
        for run in (late, asked):
            await child(state, run)

        at_first = await state.adrift(NODE, limit=10)
        await harness.advance(timedelta(minutes=1))

        assert [one.run_id for one in at_first] == [asked.id]
        assert [one.run_id for one in await state.adrift(NODE, limit=10)] == [late.id, asked.id]

    @clause("RUN-34")
    async def test_open_children_of_a_run_that_has_ended_are_to_be_cancelled(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        ended, open_, foreign = await claimed(state), await claimed(state), await claimed(state, GLOBEX)
        left = [await child(state, ended) for _ in range(4)]
        for one, change in zip(left, [Change(), WAITING, NEEDS_OPERATOR], strict=False):
            await move(state, one, change)
        grandchild = await child(state, left[1])
        asked, over = await child(state, ended), await child(state, ended)
        await move(state, asked, Change())
        await state.cancel(ACME, asked.id, reason="")
        await move(state, over, SUCCEEDED)
        await child(state, open_)
        theirs = await child(state, foreign, GLOBEX)
        before = await state.adrift(NODE, limit=10)
        await state.append(ACME, ended.id, ended.epoch, FAILED)
        await state.append(GLOBEX, foreign.id, foreign.epoch, SUCCEEDED)

        found = await state.adrift(NODE, limit=10)

        assert before == ()
        assert [(one.run_id, one.due) for one in found] == [
            *[(one.id, "cancel") for one in left],
            (theirs.id, "cancel"),
        ]
        assert [one.requester for one in found] == [ACME, ACME, ACME, ACME, GLOBEX]
        assert (await state.load(ACME, grandchild.id)).status == "queued"

    @clause("RUN-34")
    async def test_no_more_are_named_than_asked_for(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        runs = [await waiting(state) for _ in range(3)]

        found = await state.adrift(NODE, limit=2)

        assert [one.run_id for one in found] == [run.id for run in runs[:2]]

    @clause("RUN-34")
    async def test_adrift_needs_its_scope(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await waiting(state)

        with pytest.raises(PermissionDenied):
            await state.adrift(ACME, limit=10)
