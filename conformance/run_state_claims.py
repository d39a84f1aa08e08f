"""RunState: how a run comes to be, and who may work on it."""

from datetime import timedelta
from typing import Final

import anyio
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, intent, new_run, result, telling
from conformance.harness import RunStateHarness
from conformance.people import ACME, ACME_BEN, NODE
from ports.context import AuthContext
from ports.errors import Conflict, PermissionDenied
from ports.ids import WorkerId
from ports.run_state import Change, Created, Run, RunFilter, RunStatePort

LEASE: Final = timedelta(seconds=30)
ANN: Final = WorkerId("wrk_one")
BOB: Final = WorkerId("wrk_two")


async def create(state: RunStatePort, auth: AuthContext = ACME) -> Run:
    return (await state.create(auth, new_run())).run


async def claimed(state: RunStatePort, auth: AuthContext = ACME, worker: WorkerId = ANN) -> Run:
    """A new run, held by a worker with a live lease."""
    run = await create(state, auth)
    await state.renew(NODE, worker, LEASE)
    return await state.claim(auth, run.id, worker)


async def count_runs(state: RunStatePort, auth: AuthContext = ACME) -> int:
    return len((await state.list_runs(auth, RunFilter(), limit=200)).items)


@pytest.mark.anyio
class RunStateCreation(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: RunStateHarness) -> None:
        state = await harness.open()

        assert state.capabilities == harness.declared

    @clause("RUN-1")
    async def test_a_created_run_is_queued_and_holds_what_it_was_created_with(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        new = new_run()

        created = await state.create(ACME, new)

        run = created.run
        assert created.created
        assert run.status == "queued"
        assert run.requester == ACME
        assert (run.agent_id, run.agent_version, run.agent_digest) == (
            new.agent_id,
            new.agent_version,
            new.agent_digest,
        )
        assert (run.input, run.context) == (new.input, new.context)
        assert (run.epoch, run.last_sequence, run.recoveries) == (0, 1, 0)
        assert await state.load(ACME, run.id) == run

    @clause("RUN-1")
    async def test_a_created_run_has_run_created_as_its_only_event(self, harness: RunStateHarness) -> None:
        state = await harness.open()

        run = await create(state)

        assert list(await harness.event_types(ACME, run.id)) == [(1, "run.created")]

    @clause("RUN-1")
    async def test_the_deadline_counts_from_creation(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        new = new_run(deadline=timedelta(minutes=10))

        run = (await state.create(ACME, new)).run

        assert run.deadline_at == run.created_at + timedelta(minutes=10)

    @clause("RUN-1")
    async def test_run_event_and_key_are_there_for_a_port_opened_anew(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        key = idempotency()
        run = (await state.create(ACME, new_run(key))).run

        reopened = await harness.reopen()

        assert await reopened.load(ACME, run.id) == run
        assert list(await harness.event_types(ACME, run.id)) == [(1, "run.created")]
        assert (await reopened.create(ACME, new_run(key))).created is False

    @clause("RUN-2")
    async def test_a_repeated_key_returns_the_first_run_and_creates_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        key = idempotency()
        first = await state.create(ACME, new_run(key))

        second = await state.create(ACME, new_run(key))

        assert second == Created(run=first.run, created=False)
        assert await count_runs(state) == 1

    @clause("RUN-2")
    async def test_a_repeated_key_returns_the_run_as_it_is_by_now(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        key = idempotency()
        run = (await state.create(ACME, new_run(key))).run
        await state.cancel(ACME, run.id, reason="no longer needed")

        repeated = await state.create(ACME, new_run(key))

        assert (repeated.run.id, repeated.run.status) == (run.id, "cancelled")

    @clause("RUN-2")
    async def test_racing_creates_with_one_key_make_one_run(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        key = idempotency()
        outcomes: list[Created] = []

        async def attempt() -> None:
            outcomes.append(await state.create(ACME, new_run(key)))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(attempt)

        assert len({one.run.id for one in outcomes}) == 1
        assert sum(one.created for one in outcomes) == 1
        assert await count_runs(state) == 1

    @clause("RUN-2")
    async def test_another_principal_or_route_with_the_same_key_makes_another_run(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        first = await state.create(ACME, new_run(idempotency("key-1")))

        principal = await state.create(ACME_BEN, new_run(idempotency("key-1")))
        route = await state.create(ACME, new_run(idempotency("key-1", route="POST /v1/elsewhere")))

        assert len({first.run.id, principal.run.id, route.run.id}) == 3

    @clause("RUN-3")
    async def test_a_key_reused_for_another_request_conflicts_and_changes_nothing(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        run = (await state.create(ACME, new_run(idempotency("key-1")))).run

        with pytest.raises(Conflict) as refusal:
            await state.create(ACME, new_run(idempotency("key-1", fingerprint="sha256:other")))

        assert refusal.value.code == "idempotency_key_reused"
        assert await count_runs(state) == 1
        assert await state.load(ACME, run.id) == run

    @clause("RUN-17")
    async def test_recall_gives_the_run_a_key_made_and_creates_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = (await state.create(ACME, new_run(idempotency("key-1")))).run

        assert await state.recall(ACME, idempotency("key-1")) == run
        assert await state.recall(ACME, idempotency("key-2")) is None
        assert await state.recall(ACME_BEN, idempotency("key-1")) is None
        assert await count_runs(state) == 1

    @clause("RUN-17")
    async def test_recall_for_another_request_conflicts(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await state.create(ACME, new_run(idempotency("key-1")))

        with pytest.raises(Conflict) as refusal:
            await state.recall(ACME, idempotency("key-1", fingerprint="sha256:other"))

        assert refusal.value.code == "idempotency_key_reused"


@pytest.mark.anyio
class RunStateClaims(Contract):
    @clause("RUN-4")
    async def test_a_claimed_run_is_running_at_the_next_epoch_and_says_it_started(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        run = await create(state)
        await state.renew(NODE, ANN, LEASE)

        held = await state.claim(ACME, run.id, ANN)

        assert (held.status, held.worker) == ("running", ANN)
        assert (held.epoch, held.last_sequence, held.recoveries) == (1, 2, 0)
        assert held.started_at is not None
        assert await state.load(ACME, run.id) == held
        assert list(await harness.event_types(ACME, run.id)) == [(1, "run.created"), (2, "run.started")]

    @clause("RUN-4")
    async def test_only_the_first_claim_says_the_run_started(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.release(ACME, run.id, run.epoch)

        again = await state.claim(ACME, run.id, ANN)

        assert (again.epoch, again.last_sequence, again.started_at) == (2, 2, run.started_at)

    @clause("RUN-4")
    async def test_a_run_names_who_claimed_it_until_it_is_handed_back(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.renew(NODE, BOB, LEASE)

        holders = [(await state.load(ACME, run.id)).worker]
        await state.release(ACME, run.id, run.epoch)
        holders.append((await state.load(ACME, run.id)).worker)
        again = await state.claim(ACME, run.id, BOB)
        holders.append((await state.load(ACME, run.id)).worker)
        await state.append(ACME, run.id, again.epoch, SUCCEEDED)
        holders.append((await state.load(ACME, run.id)).worker)

        assert holders == [ANN, None, BOB, None]

    @clause("RUN-5")
    async def test_a_run_held_by_a_live_worker_can_not_be_claimed(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.renew(NODE, BOB, LEASE)

        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, BOB)

        assert await state.load(ACME, run.id) == run

    @clause("RUN-5")
    async def test_racing_workers_claim_a_run_once(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await create(state)
        workers = [WorkerId(f"wrk_{n}") for n in range(8)]
        for worker in workers:
            await state.renew(NODE, worker, LEASE)
        won: list[Run] = []
        lost: list[Conflict] = []

        async def attempt(worker: WorkerId) -> None:
            try:
                won.append(await state.claim(ACME, run.id, worker))
            except Conflict as conflict:
                lost.append(conflict)

        async with anyio.create_task_group() as group:
            for worker in workers:
                group.start_soon(attempt, worker)

        assert (len(won), len(lost)) == (1, 7)
        assert won[0].epoch == 1

    @clause("RUN-5", "RUN-10")
    async def test_a_terminal_run_can_not_be_claimed(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, SUCCEEDED)
        ended = await state.load(ACME, run.id)

        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)
        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, BOB)

        assert await state.load(ACME, run.id) == ended

    @clause("RUN-6")
    async def test_a_run_whose_worker_lapsed_is_taken_over_with_its_journal(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.append(ACME, run.id, run.epoch, Change(steps=(intent(1), result(1), intent(2))))
        journal = await state.steps(ACME, run.id)

        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)
        taken = await state.claim(ACME, run.id, BOB)

        assert (taken.status, taken.epoch, taken.recoveries) == ("running", 2, 1)
        assert [(step.n, step.status) for step in journal] == [(1, "completed"), (2, "started")]
        assert await state.steps(ACME, run.id) == journal

    @clause("RUN-6")
    async def test_a_retired_workers_runs_can_be_claimed_at_once(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.renew(NODE, BOB, LEASE)

        await state.retire(NODE, ANN)

        assert (await state.claim(ACME, run.id, BOB)).epoch == 2

    @clause("RUN-7")
    async def test_a_worker_that_was_taken_over_can_write_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        stale = await claimed(state)
        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)
        current = await state.claim(ACME, stale.id, BOB)

        for change in (telling("step.started"), Change(steps=(intent(1),)), SUCCEEDED):
            with pytest.raises(Conflict) as refusal:
                await state.append(ACME, stale.id, stale.epoch, change)
            assert refusal.value.code == "fenced"
        with pytest.raises(Conflict) as refusal:
            await state.release(ACME, stale.id, stale.epoch)

        assert refusal.value.code == "fenced"
        assert await state.load(ACME, stale.id) == current
        assert await state.steps(ACME, stale.id) == ()

    @clause("RUN-7")
    async def test_nothing_is_appended_to_a_run_that_was_handed_back(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.release(ACME, run.id, run.epoch)

        with pytest.raises(Conflict) as refusal:
            await state.append(ACME, run.id, run.epoch, telling("step.started"))

        assert refusal.value.code == "fenced"
        assert (await state.load(ACME, run.id)).last_sequence == 2

    @clause("RUN-15")
    async def test_a_released_run_is_claimable_at_once_and_counts_no_recovery(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await state.renew(NODE, BOB, LEASE)

        await state.release(ACME, run.id, run.epoch)
        waiting = await state.load(ACME, run.id)
        again = await state.claim(ACME, run.id, BOB)

        assert waiting.status == "queued"
        assert (again.status, again.epoch, again.recoveries) == ("running", 2, 0)

    @clause("RUN-15")
    async def test_a_run_released_in_trouble_counts_like_one_that_lost_its_worker(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        run = await claimed(state)

        await state.release(ACME, run.id, run.epoch, troubled=True)
        again = await state.claim(ACME, run.id, ANN)

        assert (again.epoch, again.recoveries) == (2, 1)

    @clause("RUN-16")
    async def test_renew_keeps_the_workers_runs_its_own(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        for _ in range(3):
            await harness.advance(LEASE / 2)
            await state.renew(NODE, ANN, LEASE)
        await state.renew(NODE, BOB, LEASE)

        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, BOB)

        await state.append(ACME, run.id, run.epoch, telling("step.started"))

    @clause("RUN-16")
    async def test_renew_tells_the_time_that_runs_are_dated_by(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        before = await create(state)
        await harness.advance(LEASE)
        renewal = await state.renew(NODE, ANN, LEASE)
        after = await create(state)

        assert before.created_at + LEASE <= renewal.now <= after.created_at

    @clause("RUN-16")
    async def test_a_worker_without_a_live_lease_claims_nothing(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await create(state)

        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, ANN)
        await state.renew(NODE, ANN, LEASE)
        await harness.advance(2 * LEASE)
        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, ANN)

        assert await state.load(ACME, run.id) == run

    @clause("RUN-16")
    async def test_only_the_nodes_own_processes_renew_and_retire(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)

        with pytest.raises(PermissionDenied):
            await state.renew(ACME, BOB, LEASE)
        with pytest.raises(PermissionDenied):
            await state.retire(ACME, ANN)

        await state.append(ACME, run.id, run.epoch, telling("step.started"))
        with pytest.raises(Conflict):
            await state.claim(ACME, run.id, BOB)
