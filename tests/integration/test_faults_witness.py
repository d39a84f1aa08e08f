"""The witness of the fault driver sees what it is there to see: without it, silence would prove nothing."""

import pytest

from adapters.postgres.engine import PostgresConfig
from adapters.postgres.run_state import SPEC
from adapters.system_clock import SystemClock
from conformance.factories import intent, new_run, result
from conformance.people import ACME, NODE
from conformance.run_state_claims import ANN, LEASE
from ports.adapter import Given
from ports.run_state import Change
from tests.faults.witness import ask, install
from tests.support.postgres import cloned, execute

pytestmark = pytest.mark.anyio


async def test_the_witness_sees_a_write_under_an_older_epoch_and_a_result_recorded_twice() -> None:
    async with cloned() as database, SPEC.open(PostgresConfig(dsn=database.app), Given(clock=SystemClock())) as state:
        await install(database.superuser)
        run = (await state.create(ACME, new_run())).run
        await state.renew(NODE, ANN, LEASE)
        held = await state.claim(ACME, run.id, ANN)
        await state.append(ACME, run.id, held.epoch, Change(steps=(intent(1), intent(2))))
        await state.append(ACME, run.id, held.epoch, Change(steps=(result(1),)))
        honest = await ask(database.superuser, "SELECT n FROM faults.zombies")
        recorded = await ask(database.superuser, "SELECT n FROM faults.results")

        await execute(database.superuser, "UPDATE agentos.steps SET status = 'completed', epoch = 0 WHERE n = 2")
        await execute(database.superuser, "UPDATE agentos.steps SET status = 'failed' WHERE n = 1")
        zombies = await ask(database.superuser, "SELECT n FROM faults.zombies")
        results = await ask(database.superuser, "SELECT n FROM faults.results ORDER BY n")
        claims = await ask(database.superuser, "SELECT epoch, worker_id FROM faults.claims")

    assert (honest, [row["n"] for row in recorded]) == ([], [1])
    assert [row["n"] for row in zombies] == [2]
    assert [row["n"] for row in results] == [1, 1, 2]
    assert [(row["epoch"], row["worker_id"]) for row in claims] == [(1, ANN)]


async def test_a_cancel_that_closes_what_was_begun_under_an_older_epoch_is_no_stale_write() -> None:
    async with cloned() as database, SPEC.open(PostgresConfig(dsn=database.app), Given(clock=SystemClock())) as state:
        await install(database.superuser)
        run = (await state.create(ACME, new_run())).run
        await state.renew(NODE, ANN, LEASE)
        first = await state.claim(ACME, run.id, ANN)
        await state.append(ACME, run.id, first.epoch, Change(steps=(intent(1), intent(2))))
        await state.release(ACME, run.id, first.epoch, troubled=False)
        second = await state.claim(ACME, run.id, ANN)
        await state.append(ACME, run.id, second.epoch, Change(steps=(result(1),)))
        await state.release(ACME, run.id, second.epoch, troubled=False)

        await state.cancel(ACME, run.id, reason="enough")
        closed = [step.status for step in await state.steps(ACME, run.id)]
        after_the_cancel = await ask(database.superuser, "SELECT n FROM faults.zombies")
        # The same write by somebody who did not end the run.
        await execute(database.superuser, "UPDATE agentos.steps SET status = 'started', epoch = 2 WHERE n = 2")
        await execute(database.superuser, "UPDATE agentos.steps SET status = 'unknown', epoch = 1 WHERE n = 2")
        zombies = await ask(database.superuser, "SELECT n, epoch FROM faults.zombies")

    assert closed == ["completed", "unknown"]
    assert after_the_cancel == []
    assert [(row["n"], row["epoch"]) for row in zombies] == [(2, 1)]
