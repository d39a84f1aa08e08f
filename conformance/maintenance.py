"""What every Maintenance adapter must show. Clauses: `ports.maintenance`."""

from datetime import timedelta
from typing import Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import MEGABYTE, SUCCEEDED, idempotency, intent, new_run, result
from conformance.harness import MaintenanceHarness
from conformance.people import ACME, ACME_LAB, GLOBEX, NODE
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, PermissionDenied
from ports.event import Event
from ports.ids import WorkerId
from ports.maintenance import MIN_RETENTION, MaintenancePort
from ports.messages import Json
from ports.reply_journal import Done, Won
from ports.request_log import READ, READ_CONTENT, RequestRecord, Written, new_request_id
from ports.run_state import Change, Idempotency, NewRun, Run, RunFilter, RunStatePort, Step

RETENTION: Final = timedelta(days=30)
OLD: Final = RETENTION + timedelta(days=2)
DAY: Final = timedelta(days=1)
WORKER: Final = WorkerId("wrk_upkeep")
READER: Final = replace(ACME, scopes=frozenset({READ, READ_CONTENT}))
PATIENCE_CALLS: Final = 50


async def done(port: MaintenancePort) -> int:
    """Upkeep until there is no more; the runs it removed."""
    removed = 0
    for _ in range(PATIENCE_CALLS):
        found = await port.upkeep(NODE, retention=RETENTION)
        removed += found.runs_removed
        if not found.more:
            return removed
    raise AssertionError(f"{PATIENCE_CALLS} calls did not come to an end")


async def ended(runs: RunStatePort, auth: AuthContext = ACME, new: NewRun | None = None, *, output: Json = 42) -> Run:
    """A run with a step that has succeeded."""
    await runs.renew(NODE, WORKER, timedelta(hours=1))
    created = await runs.create(auth, new or new_run())
    run = await runs.claim(auth, created.run.id, WORKER)
    await runs.append(auth, run.id, run.epoch, Change(steps=(intent(1), result(1, output))))
    await runs.append(auth, run.id, run.epoch, SUCCEEDED)
    return await runs.load(auth, run.id)


Whole = tuple[Run, tuple[Step, ...], tuple[Event, ...]]


async def read_whole(harness: MaintenanceHarness, run: Run, auth: AuthContext = ACME) -> Whole:
    runs, events = await harness.runs(), await harness.events()
    return await runs.load(auth, run.id), await runs.steps(auth, run.id), await events.read(auth, run.id)


@pytest.mark.anyio
class MaintenanceContract(Contract):
    @clause("MNT-1")
    async def test_upkeep_needs_its_scope(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        run = await ended(runs)
        await harness.advance(OLD)

        with pytest.raises(PermissionDenied):
            await port.upkeep(ACME, retention=RETENTION)

        assert (await runs.load(ACME, run.id)).status == "succeeded"

    @clause("MNT-1", "MNT-2")
    async def test_old_runs_of_every_tenant_and_namespace_go(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        old = [(auth, await ended(runs, auth)) for auth in (ACME, ACME_LAB, GLOBEX)]
        await harness.advance(OLD)

        removed = await done(port)

        assert removed == 3
        for auth, run in old:
            with pytest.raises(NotFound):
                await runs.load(auth, run.id)

    @clause("MNT-2")
    async def test_an_old_run_is_gone_with_all_that_was_its(self, harness: MaintenanceHarness) -> None:
        port, runs, events = await harness.open(), await harness.runs(), await harness.events()
        new = new_run(idempotency("used"))
        run = await ended(runs, new=new)
        await harness.advance(OLD)

        await done(port)

        for reading in (runs.load(ACME, run.id), runs.steps(ACME, run.id), events.read(ACME, run.id)):
            with pytest.raises(NotFound):
                await reading
        assert (await runs.list_runs(ACME, RunFilter(), limit=10)).items == ()
        assert await runs.recall(ACME, new.idempotency) is None
        again = await runs.create(ACME, new)
        assert again.created
        assert again.run.id != run.id

    @clause("MNT-3")
    async def test_an_open_run_stays_however_old_it_is(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        await runs.renew(NODE, WORKER, timedelta(hours=1))
        queued = (await runs.create(ACME, new_run())).run
        created = (await runs.create(ACME, new_run())).run
        running = await runs.claim(ACME, created.id, WORKER)
        await runs.append(ACME, running.id, running.epoch, Change(steps=(intent(1),)))
        before = [await read_whole(harness, run) for run in (queued, running)]
        await harness.advance(10 * RETENTION)

        removed = await done(port)

        assert removed == 0
        assert [await read_whole(harness, run) for run in (queued, running)] == before

    @clause("MNT-3")
    async def test_a_run_younger_than_the_retention_stays_with_its_key(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        new = new_run(idempotency("used"))
        await ended(runs)
        await harness.advance(2 * DAY)
        young = await ended(runs, new=new)
        before = await read_whole(harness, young)
        await harness.advance(RETENTION - DAY / 2)

        removed = await done(port)

        assert removed == 1
        assert await read_whole(harness, young) == before
        assert await runs.recall(ACME, new.idempotency) == young

    @clause("MNT-2", "MNT-3")
    async def test_a_run_that_ended_lately_stays_readable_for_a_while(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        run = (await runs.create(ACME, new_run())).run
        await harness.advance(2 * RETENTION)
        await runs.cancel(ACME, run.id, reason="waited long enough")
        before = await read_whole(harness, run)

        await harness.advance(MIN_RETENTION - DAY / 2)
        removed_early = await done(port)
        after = await read_whole(harness, run)
        await harness.advance(DAY)
        removed_late = await done(port)

        assert (removed_early, removed_late) == (0, 1)
        assert after == before

    @clause("MNT-4")
    async def test_a_retention_that_is_too_short_is_refused(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        run = await ended(runs)
        await harness.advance(OLD)

        for short in (MIN_RETENTION - timedelta(seconds=1), timedelta(0), -RETENTION):
            with pytest.raises(InvalidArgument):
                await port.upkeep(NODE, retention=short)

        assert (await runs.load(ACME, run.id)).status == "succeeded"

    @clause("MNT-5")
    async def test_upkeep_comes_to_an_end_and_then_has_nothing_to_do(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        for _ in range(3):
            await ended(runs)
        await harness.advance(OLD)

        assert [await done(port), await done(port)] == [3, 0]

    @clause("MNT-5")
    async def test_callers_at_once_remove_and_count_each_run_once(self, harness: MaintenanceHarness) -> None:
        port, other, runs = await harness.open(), await harness.reopen(), await harness.runs()
        kept = []
        for _ in range(8):
            await ended(runs)
        await harness.advance(OLD)
        kept.append(await ended(runs))
        counted: list[int] = []

        async def one(caller: MaintenancePort) -> None:
            counted.append(await done(caller))

        async with anyio.create_task_group() as group:
            for caller in (port, other, port, other):
                group.start_soon(one, caller)
        counted.append(await done(port))

        assert sum(counted) == 8
        assert [run.id for run in (await runs.list_runs(ACME, RunFilter(), limit=20)).items] == [kept[0].id]

    @clause("MNT-6")
    async def test_equal_bodies_of_other_runs_stay(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        old = [await ended(runs, auth, large()) for auth in (ACME, ACME_LAB, GLOBEX)]
        await harness.advance(OLD)
        young = [(auth, await ended(runs, auth, large())) for auth in (ACME, ACME_LAB)]

        removed = await done(port)
        made_after = await ended(runs, GLOBEX, large())

        assert removed == len(old)
        for auth, run in (*young, (GLOBEX, made_after)):
            assert (await runs.load(auth, run.id)).input == MEGABYTE

    @clause("MNT-3", "MNT-6")
    async def test_a_fork_outlives_the_run_it_comes_from_with_its_journal(self, harness: MaintenanceHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        old = await ended(runs, new=large(), output=MEGABYTE)
        await harness.advance(OLD)
        fork = (await runs.fork(ACME, old.id, 1, idempotency())).run

        removed = await done(port)

        [step] = await runs.steps(ACME, fork.id)
        assert removed == 1
        assert (await runs.load(ACME, fork.id)).input == MEGABYTE
        assert step.output == MEGABYTE

    @clause("MNT-7")
    async def test_requests_go_when_their_time_is_over_and_not_before(self, harness: MaintenanceHarness) -> None:
        port, log = await harness.open(), await harness.requests()
        await log.write(ACME, [Written(record=await request(harness))])
        await log.write(GLOBEX, [Written(record=await request(harness))])
        await harness.advance(2 * DAY)
        young = await request(harness)
        await log.write(ACME, [Written(record=young)])
        await harness.advance(RETENTION - 2 * DAY - DAY / 2)
        await done(port)
        before = (await harness.leftovers())[0]

        await harness.advance(2 * DAY)
        await done(port)

        assert (before, (await harness.leftovers())[0]) == (3, 1)
        assert (await log.recent(READER, limit=10)).items == (young,)

    @clause("MNT-7")
    async def test_texts_go_when_their_time_is_over_and_their_records_stay(self, harness: MaintenanceHarness) -> None:
        port, log = await harness.open(), await harness.requests()
        one = await request(harness)
        short, long = replace(one, kept_until=one.at + DAY), await request(harness)
        long = replace(long, kept_until=long.at + 20 * DAY)
        await log.write(ACME, [Written(record=short, sealed=b"short"), Written(record=long, sealed=b"long")])
        await harness.advance(2 * DAY)

        await done(port)

        assert (await harness.leftovers())[:2] == (2, 1)
        assert await log.content(READER, long.id) == b"long"
        assert await log.find(READER, short.id) == short

    @clause("MNT-7")
    async def test_replies_go_when_their_time_is_over(self, harness: MaintenanceHarness) -> None:
        port, journal = await harness.open(), await harness.replies()
        for auth, key, keep in ((ACME, "short", DAY), (GLOBEX, "short", DAY), (ACME, "long", 3 * DAY)):
            won = await journal.open(auth, key, "same", lease=timedelta(minutes=1), keep=keep)
            assert isinstance(won, Won)
            await journal.complete(auth, won.ticket, {"reply": key})
        await harness.advance(DAY * 1.5)

        await done(port)

        assert (await harness.leftovers())[2] == 1
        found = await journal.open(ACME, "long", "same", lease=timedelta(minutes=1))
        assert found == Done(outcome={"reply": "long"})


async def request(harness: MaintenanceHarness) -> RequestRecord:
    """A record of this moment."""
    now = await harness.now()
    at = now.replace(microsecond=now.microsecond // 1_000 * 1_000)
    return RequestRecord(
        id=new_request_id(at), at=at, namespace=ACME.namespace, principal="usr_ann", correlation_id="c",
        route="/v1/embeddings", model_asked="m", status=200,
    )  # fmt: skip


def large(key: Idempotency | None = None) -> NewRun:
    return replace(new_run(key), input=MEGABYTE)
