"""RunState: what a tenant is entitled to, kept exactly."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import anyio
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import SUCCEEDED, idempotency, new_run
from conformance.harness import RunStateHarness
from conformance.people import ACME, ACME_LAB, GLOBEX, NODE
from conformance.run_state_claims import ANN, BOB, LEASE, claimed, count_runs, create
from ports.errors import ResourceExhausted
from ports.ids import WorkerId
from ports.run_state import Run, RunFilter, RunStatePort
from ports.tenant import Entitlements

FEW: Final = 5
RACERS: Final = 40
FIVE_A_MINUTE: Final = Entitlements(runs_per_minute=FEW)
FIVE_QUEUED: Final = Entitlements(max_queued_runs=FEW)
FIVE_ACTIVE: Final = Entitlements(max_active_runs=FEW)
ONE_ACTIVE: Final = Entitlements(max_active_runs=1)
MINUTE: Final = timedelta(minutes=1)


async def raced(attempts: list[Callable[[], Awaitable[object]]]) -> list[ResourceExhausted]:
    """Make all of `attempts` at once; the refusals among their outcomes."""
    refusals: list[ResourceExhausted] = []

    async def attempt(one: Callable[[], Awaitable[object]]) -> None:
        try:
            await one()
        except ResourceExhausted as refusal:
            refusals.append(refusal)

    async with anyio.create_task_group() as group:
        for one in attempts:
            group.start_soon(attempt, one)
    return refusals


async def refused(call: Awaitable[object]) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as refusal:
        await call
    return refusal.value


async def count_running(state: RunStatePort) -> int:
    return len((await state.list_runs(ACME, RunFilter(status="running"), limit=200)).items)


@pytest.mark.anyio
class RunStateAdmission(Contract):
    @clause("RUN-25")
    @pytest.mark.parametrize(
        ("entitlements", "code"),
        [(FIVE_A_MINUTE, "rate_limited"), (FIVE_QUEUED, "concurrency_limited")],
        ids=["rate", "backlog"],
    )
    async def test_of_racing_creations_exactly_the_entitled_ones_are_accepted(
        self, harness: RunStateHarness, entitlements: Entitlements, code: str
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, entitlements)

        refusals = await raced([lambda: state.create(ACME, new_run()) for _ in range(RACERS)])

        assert await count_runs(state) == FEW
        assert len(refusals) == RACERS - FEW
        assert {refusal.code for refusal in refusals} == {code}
        assert all(refusal.retry_after is not None and refusal.retry_after > timedelta(0) for refusal in refusals)
        assert all(refusal.retryable for refusal in refusals)

    @clause("RUN-25")
    async def test_after_the_named_wait_the_rate_has_room_for_one_again(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, FIVE_A_MINUTE)
        for _ in range(FEW):
            await create(state)
        wait = (await refused(state.create(ACME, new_run()))).retry_after
        assert wait is not None

        await harness.advance(wait)
        await create(state)

        assert timedelta(0) < wait <= MINUTE / FEW
        assert (await refused(state.create(ACME, new_run()))).code == "rate_limited"

    @clause("RUN-25")
    async def test_a_rate_that_was_not_used_is_saved_up_for_a_minute_only(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, FIVE_A_MINUTE)
        await create(state)
        await harness.advance(10 * MINUTE)

        refusals = await raced([lambda: state.create(ACME, new_run()) for _ in range(2 * FEW)])

        assert len(refusals) == FEW

    @clause("RUN-25")
    async def test_a_backlog_has_room_again_when_a_run_was_started_or_cancelled(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, FIVE_QUEUED)
        first, second, *_ = [await create(state) for _ in range(FEW)]
        await state.renew(NODE, ANN, LEASE)

        await state.claim(ACME, first.id, ANN)
        await create(state)
        full = await refused(state.create(ACME, new_run()))
        await state.cancel(ACME, second.id, reason="no longer needed")
        await create(state)

        assert full.code == "concurrency_limited"
        assert (await refused(state.create(ACME, new_run()))).code == "concurrency_limited"

    @clause("RUN-25")
    async def test_a_backlog_limit_that_was_lowered_holds_for_what_is_queued_already(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        runs = [await create(state) for _ in range(FEW + 2)]
        await harness.entitle(ACME.tenant, FIVE_QUEUED)

        for run in runs[:2]:
            assert (await refused(state.create(ACME, new_run()))).code == "concurrency_limited"
            await state.cancel(ACME, run.id, reason="no longer needed")
        assert (await refused(state.create(ACME, new_run()))).code == "concurrency_limited"
        await state.cancel(ACME, runs[2].id, reason="no longer needed")

        assert len(await raced([lambda: state.create(ACME, new_run()) for _ in range(RACERS)])) == RACERS - 1

    @clause("RUN-25")
    async def test_a_run_handed_back_is_queued_like_any_other(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        run = await claimed(state)
        await harness.entitle(ACME.tenant, Entitlements(max_queued_runs=1))

        await state.release(ACME, run.id, run.epoch)

        assert (await refused(state.create(ACME, new_run()))).code == "concurrency_limited"
        await state.claim(ACME, run.id, ANN)
        await create(state)

    @clause("RUN-25")
    @pytest.mark.parametrize("entitlements", [FIVE_A_MINUTE, FIVE_QUEUED], ids=["rate", "backlog"])
    async def test_a_refusal_uses_up_neither_key_nor_room(
        self, harness: RunStateHarness, entitlements: Entitlements
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, entitlements)
        runs = [await create(state) for _ in range(FEW)]
        key = idempotency()
        for _ in range(3):
            await refused(state.create(ACME, new_run(key)))
        assert await state.recall(ACME, key) is None

        # Room for exactly one more.
        await harness.advance(MINUTE / FEW)
        await state.cancel(ACME, runs[0].id, reason="no longer needed")
        accepted = await state.create(ACME, new_run(key))

        assert accepted.created
        assert await count_runs(state) == FEW + 1

    @clause("RUN-25")
    @pytest.mark.parametrize("entitlements", [FIVE_A_MINUTE, FIVE_QUEUED], ids=["rate", "backlog"])
    async def test_a_repeat_is_never_refused_and_uses_nothing_up(
        self, harness: RunStateHarness, entitlements: Entitlements
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, entitlements)
        key = idempotency()
        first = await state.create(ACME, new_run(key))

        repeats = [await state.create(ACME, new_run(key)) for _ in range(2 * FEW)]
        for _ in range(FEW - 1):
            await create(state)
        at_the_limit = await state.create(ACME, new_run(key))

        assert {one.run.id for one in (*repeats, at_the_limit)} == {first.run.id}
        assert await count_runs(state) == FEW

    @clause("RUN-25")
    @pytest.mark.parametrize("entitlements", [FIVE_A_MINUTE, FIVE_QUEUED], ids=["rate", "backlog"])
    async def test_racing_repeats_use_up_what_one_does(
        self, harness: RunStateHarness, entitlements: Entitlements
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, entitlements)
        for _ in range(FEW - 2):
            await create(state)
        key = idempotency()

        refusals = await raced([lambda: state.create(ACME, new_run(key)) for _ in range(20)])
        await create(state)

        assert refusals == []
        assert await count_runs(state) == FEW
        await refused(state.create(ACME, new_run()))

    @clause("RUN-25")
    async def test_one_tenants_limit_is_no_others(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, Entitlements(runs_per_minute=1, max_queued_runs=1))
        await harness.entitle(GLOBEX.tenant, FIVE_A_MINUTE)
        await create(state)

        await refused(state.create(ACME_LAB, new_run()))
        for _ in range(FEW):
            await create(state, GLOBEX)

    @clause("RUN-25")
    @pytest.mark.parametrize(
        ("entitlements", "code"),
        [(FIVE_A_MINUTE, "rate_limited"), (FIVE_QUEUED, "concurrency_limited")],
        ids=["rate", "backlog"],
    )
    async def test_a_fork_needs_room_like_any_other_run(
        self, harness: RunStateHarness, entitlements: Entitlements, code: str
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, entitlements)
        run, key = await create(state), idempotency()
        first = await state.fork(ACME, run.id, 0, key)

        refusals = await raced([lambda: state.fork(ACME, run.id, 0, idempotency()) for _ in range(RACERS)])
        again = await state.fork(ACME, run.id, 0, key)

        assert await count_runs(state) == FEW
        assert (len(refusals), {refusal.code for refusal in refusals}) == (RACERS - FEW + 2, {code})
        assert (again.run.id, again.created) == (first.run.id, False)

    @clause("RUN-26")
    async def test_of_racing_claims_exactly_the_entitled_ones_succeed(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, FIVE_ACTIVE)
        runs = [await create(state) for _ in range(RACERS)]
        workers = [WorkerId(f"wrk_{n}") for n in range(RACERS)]
        for worker in workers:
            await state.renew(NODE, worker, LEASE)

        def claim(run: Run, worker: WorkerId) -> Callable[[], Awaitable[object]]:
            return lambda: state.claim(ACME, run.id, worker)

        refusals = await raced([claim(run, worker) for run, worker in zip(runs, workers, strict=True)])

        assert await count_running(state) == FEW
        assert len(refusals) == RACERS - FEW
        assert {refusal.code for refusal in refusals} == {"concurrency_limited"}
        assert all(refusal.retry_after is not None for refusal in refusals)

    @clause("RUN-26")
    async def test_a_refused_run_stays_as_it_was_and_is_claimed_when_another_has_ended(
        self, harness: RunStateHarness
    ) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        running, queued = await claimed(state), await create(state)

        await refused(state.claim(ACME, queued.id, ANN))
        assert await state.load(ACME, queued.id) == queued
        await state.append(ACME, running.id, running.epoch, SUCCEEDED)

        assert (await state.claim(ACME, queued.id, ANN)).status == "running"

    @clause("RUN-26")
    async def test_a_run_handed_back_makes_room_for_another(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        running, queued = await claimed(state), await create(state)

        await state.release(ACME, running.id, running.epoch)

        assert (await state.claim(ACME, queued.id, ANN)).status == "running"
        await refused(state.claim(ACME, running.id, ANN))

    @clause("RUN-26")
    async def test_taking_a_run_over_needs_no_room_and_makes_none(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        running, queued = await claimed(state), await create(state)
        await harness.advance(2 * LEASE)
        await state.renew(NODE, BOB, LEASE)

        taken = await state.claim(ACME, running.id, BOB)

        assert (taken.status, taken.epoch) == ("running", 2)
        await refused(state.claim(ACME, queued.id, BOB))

    @clause("RUN-26")
    async def test_a_limit_that_was_lowered_holds_as_soon_as_enough_has_ended(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, FIVE_ACTIVE)
        running = [await claimed(state) for _ in range(FEW)]
        queued = await create(state)
        await harness.entitle(ACME.tenant, Entitlements(max_active_runs=2))

        # Whichever of them are left: the last claimed of five is one of the two in the end.
        for run in running[:3]:
            await refused(state.claim(ACME, queued.id, ANN))
            await state.append(ACME, run.id, run.epoch, SUCCEEDED)
        await refused(state.claim(ACME, queued.id, ANN))
        await state.append(ACME, running[3].id, running[3].epoch, SUCCEEDED)
        await state.claim(ACME, queued.id, ANN)

        assert await count_running(state) == 2
        await refused(state.claim(ACME, (await create(state)).id, ANN))

    @clause("RUN-26")
    async def test_one_tenants_running_runs_take_no_others_room(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        await harness.entitle(GLOBEX.tenant, FIVE_ACTIVE)
        await claimed(state, ACME)

        await refused(state.claim(ACME_LAB, (await create(state, ACME_LAB)).id, ANN))
        for _ in range(FEW):
            await claimed(state, GLOBEX)

    @clause("RUN-27")
    async def test_what_a_tenant_has_no_room_for_is_no_orphan_until_it_has(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        running, queued = await claimed(state), await create(state)
        other = await create(state, GLOBEX)
        await harness.advance(LEASE / 2)

        full = await state.orphans(NODE, queued_for=timedelta(seconds=1), limit=1)
        await state.append(ACME, running.id, running.epoch, SUCCEEDED)
        again = await state.orphans(NODE, queued_for=timedelta(seconds=1), limit=10)

        assert [one.run_id for one in full] == [other.id]
        assert [one.run_id for one in again] == [queued.id, other.id]

    @clause("RUN-27")
    async def test_a_lapsed_run_of_a_tenant_without_room_is_an_orphan(self, harness: RunStateHarness) -> None:
        state = await harness.open()
        await harness.entitle(ACME.tenant, ONE_ACTIVE)
        lapsed = await claimed(state)
        await create(state)
        await harness.advance(2 * LEASE)

        orphans = await state.orphans(NODE, queued_for=timedelta(seconds=1), limit=10)

        assert [one.run_id for one in orphans] == [lapsed.id]
