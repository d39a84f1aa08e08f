"""The witness of the fault driver sees what it is there to see: without it, silence would prove nothing."""

import time

import pytest
from msgspec.structs import replace

from adapters.postgres import reply_journal
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.run_state import SPEC
from adapters.system_clock import SystemClock
from conformance.factories import intent, new_run, result
from conformance.people import ACME, NODE
from conformance.run_state_claims import ANN, LEASE
from ports.adapter import Given
from ports.messages import Json
from ports.reply_journal import Won
from ports.run_state import Change, StepIntent, step_key
from tests.faults.payments import Disturbed, Payment
from tests.faults.reconcile import model_calls_are_paid_once
from tests.faults.upstream import Upstream
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


def _asking(n: int) -> StepIntent:
    return replace(intent(n), kind="model")


def _receipt(*, possible_duplicate: bool) -> Json:
    return {"text": "hello", "route": {"possible_duplicate": possible_duplicate}}


async def test_a_model_step_paid_twice_is_a_violation_unless_a_gateway_was_lost_within_the_call() -> None:
    """Three model steps, each paid twice: within the call of the second a gateway is lost, the last one is journaled."""
    given = Given(clock=SystemClock())
    async with (
        cloned() as database,
        SPEC.open(PostgresConfig(dsn=database.app), given) as state,
        reply_journal.SPEC.open(PostgresConfig(dsn=database.app), given) as journal,
    ):
        await install(database.superuser)
        run = (await state.create(ACME, replace(new_run(), input={"marker": "key-1"}))).run
        await state.renew(NODE, ANN, LEASE)
        held = await state.claim(ACME, run.id, ANN)
        began = Change(steps=(_asking(1), intent(2), _asking(3), _asking(4)))
        await state.append(ACME, run.id, held.epoch, began)
        won = await journal.open(ACME, f"{step_key(run.id, 4)}/owner", "digest", lease=LEASE)
        assert isinstance(won, Won)
        before = time.time()
        await journal.complete(ACME, won.ticket, {"reply": "hello"})
        after = time.time()
        upstream = Upstream()
        upstream.payments["key-1/0"] = [Payment(life=2, asked_at=after), Payment(life=2, asked_at=after + 1)]
        upstream.payments["key-1/1"] = [Payment(life=1, asked_at=before), Payment(life=2, asked_at=after)]
        upstream.payments["key-1/2"] = [Payment(life=1, asked_at=before - 1), Payment(life=2, asked_at=after)]
        disturbed = Disturbed(killed={1: after})
        told = Change(steps=(result(3, _receipt(possible_duplicate=True)),))
        await state.append(ACME, run.id, held.epoch, told)

        found = await model_calls_are_paid_once(database.superuser, upstream, disturbed)
        await execute(
            database.superuser, """UPDATE agentos.steps SET output = '{"route": {"possible_duplicate": false}}'"""
        )
        unsaid = await model_calls_are_paid_once(database.superuser, upstream, disturbed)

    assert not found.ok
    assert found.gates == {"model_steps_paid_twice": 2, "in_doubt_and_not_said": 0, "taken_over_too_few": 0}
    assert found.figures["model_steps_in_doubt_paid_twice"] == 1
    examples = found.figures["examples"]
    assert isinstance(examples, list)
    assert [(one.split(":")[0], "was not killed" in one, "in the journal" in one) for one in examples] == [
        ("key-1/0", True, False),
        ("key-1/2", False, True),
    ]
    assert unsaid.gates["in_doubt_and_not_said"] == 1
