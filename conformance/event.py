"""What every Event adapter must show. Clauses: `ports.event`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import anyio
import anyio.lowlevel
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import MEGABYTE, SUCCEEDED, telling
from conformance.harness import EventHarness
from conformance.people import ACME, FOREIGNERS, Foreigner
from ports.errors import InvalidArgument, NotFound
from ports.event import MAX_READ, Event, EventPort
from ports.ids import RunId
from ports.run_state import Change, NewEvent, Run

PATIENCE_S: Final = 10
ABSENT: Final = RunId("run_" + "0" * 32)
NO_ID: Final = RunId("not an id of ours")


async def ended_run(harness: EventHarness) -> Run:
    """A run of seven events: created, started, four deltas, completed."""
    run = await harness.start_run(ACME)
    await harness.append(ACME, run, telling(*["model.delta"] * 4))
    await harness.append(ACME, run, SUCCEEDED)
    return run


async def followed(port: EventPort, run: Run, after: int = 0) -> list[Event]:
    """All a follower gets, which must come to an end."""
    with anyio.fail_after(PATIENCE_S):
        return [event async for event in port.follow(ACME, run.id, after=after)]


async def first_step(port: EventPort, auth_and_run: tuple[Foreigner, RunId]) -> None:
    foreigner, run_id = auth_and_run
    await anext(aiter(port.follow(foreigner.auth, run_id)))


def sequences(events: list[Event] | tuple[Event, ...]) -> list[int]:
    return [event.sequence for event in events]


@pytest.mark.anyio
class EventContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: EventHarness) -> None:
        port = await harness.open()

        assert port.capabilities == harness.declared

    @clause("EVE-1")
    async def test_a_log_is_read_in_order_without_gaps(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        events = await port.read(ACME, run.id)

        assert [(event.sequence, event.type) for event in events] == [
            (1, "run.created"),
            (2, "run.started"),
            (3, "model.delta"),
            (4, "model.delta"),
            (5, "model.delta"),
            (6, "model.delta"),
            (7, "run.completed"),
        ]

    @clause("EVE-1")
    async def test_an_event_tells_what_was_appended_and_by_whose_request(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        data = {"text": "naïve “quotes” \U0001f600", "nested": {"list": [1, 2.5, None, True]}}
        await harness.append(ACME, run, Change(events=(NewEvent(type="model.delta", data=data),)))

        events = await port.read(ACME, run.id)

        assert events[2].data == data
        assert {(event.run_id, event.tenant_id) for event in events} == {(run.id, ACME.tenant)}
        assert {event.correlation_id for event in events} == {ACME.trace.correlation_id}
        assert {event.traceparent for event in events} == {ACME.trace.traceparent}
        assert len({event.event_id for event in events}) == 3
        assert all(event.time.utcoffset() is not None for event in events)

    @clause("EVE-1")
    @pytest.mark.parametrize("after", range(8))
    async def test_a_read_starts_after_the_cursor_and_keeps_the_limit(self, harness: EventHarness, after: int) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        some = await port.read(ACME, run.id, after=after, limit=2)
        rest = await port.read(ACME, run.id, after=after)

        assert sequences(rest) == list(range(after + 1, 8))
        assert some == rest[:2]

    @clause("EVE-1")
    async def test_large_events_are_read_whole_in_as_many_reads_as_it_takes(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        texts = [MEGABYTE + str(n) for n in range(6)]
        for text in texts:
            await harness.append(ACME, run, Change(events=(NewEvent(type="tool.completed", data={"output": text}),)))
        await harness.append(ACME, run, SUCCEEDED)

        found: list[Event] = []
        for _ in range(9):
            found.extend(await port.read(ACME, run.id, after=len(found)))

        large = [event.data["output"] for event in found if event.type == "tool.completed"]
        assert len(found) == 9
        assert [one == text for one, text in zip(large, texts, strict=True)] == [True] * 6

    @clause("EVE-2")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_a_foreign_log_is_refused_like_an_absent_one(
        self, harness: EventHarness, foreigner: Foreigner
    ) -> None:
        port = await harness.open()
        run = await ended_run(harness)
        texts = set()

        for run_id in (run.id, ABSENT, NO_ID):
            with pytest.raises(NotFound) as read:
                await port.read(foreigner.auth, run_id)
            with pytest.raises(NotFound) as follow:
                await first_step(port, (foreigner, run_id))
            texts |= {read.value.message.replace(run_id, "…"), follow.value.message.replace(run_id, "…")}

        assert len(texts) == 1

    @clause("EVE-2", "EVE-5")
    async def test_a_foreign_log_is_refused_whatever_the_cursor(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        for after in (0, 7, 8):
            with pytest.raises(NotFound):
                await port.read(FOREIGNERS[0].auth, run.id, after=after)

    @clause("EVE-3")
    @pytest.mark.parametrize("after", range(7))
    async def test_a_follower_of_an_ended_run_gets_the_rest_and_ends(self, harness: EventHarness, after: int) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        events = await followed(port, run, after)

        assert tuple(events) == await port.read(ACME, run.id, after=after)

    @clause("EVE-3")
    async def test_a_follower_gets_what_is_appended_while_it_runs_once_and_in_order(
        self, harness: EventHarness
    ) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        received: list[Event] = []

        async def follow() -> None:
            received.extend([event async for event in port.follow(ACME, run.id)])

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(follow)
                for _ in range(20):
                    await harness.append(ACME, run, telling("model.delta", "model.delta"))
                    await anyio.lowlevel.checkpoint()
                await harness.append(ACME, run, SUCCEEDED)

        assert sorted(sequences(received)) == sorted(3 * list(range(1, 44)))
        assert await followed(port, run) == list(await port.read(ACME, run.id))

    @clause("EVE-3")
    async def test_a_follower_sees_each_event_soon_after_it_is_appended(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)

        with anyio.fail_after(PATIENCE_S):
            async with aclosing(generator(port, run)) as events:
                assert [(await anext(events)).sequence for _ in range(2)] == [1, 2]
                for expected in (3, 4, 5):
                    await harness.append(ACME, run, telling("model.delta"))
                    assert (await anext(events)).sequence == expected

    @clause("EVE-3")
    async def test_one_follower_stopping_leaves_the_others_alone(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)

        with anyio.fail_after(PATIENCE_S):
            async with aclosing(generator(port, run)) as stays:
                assert (await anext(stays)).sequence == 1
                async with aclosing(generator(port, run)) as leaves:
                    await anext(leaves)
                await harness.append(ACME, run, SUCCEEDED)
                rest = [event.sequence async for event in stays]

        assert rest == [2, 3]

    @clause("EVE-4")
    async def test_following_from_the_terminal_event_yields_nothing_and_ends(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        assert await followed(port, run, after=7) == []

    @clause("EVE-5")
    @pytest.mark.parametrize("after", [-1, 8, 10**6, 2**63])
    async def test_a_sequence_the_run_does_not_have_is_refused(self, harness: EventHarness, after: int) -> None:
        port = await harness.open()
        run = await ended_run(harness)

        with pytest.raises(InvalidArgument):
            await port.read(ACME, run.id, after=after)
        with pytest.raises(InvalidArgument):
            await followed(port, run, after)

    @clause("EVE-6")
    async def test_a_follower_that_does_not_read_holds_nothing_up_and_loses_nothing(
        self, harness: EventHarness
    ) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)

        with anyio.fail_after(3 * PATIENCE_S):
            async with aclosing(generator(port, run)) as slow:
                assert (await anext(slow)).sequence == 1
                for _ in range(12):
                    await harness.append(ACME, run, telling(*["model.delta"] * 100))
                await harness.append(ACME, run, SUCCEEDED)
                quick = [event.sequence async for event in port.follow(ACME, run.id)]
                rest = [event.sequence async for event in slow]

        assert quick == list(range(1, 1204))
        assert rest == list(range(2, 1204))

    @clause("EVE-1", "EVE-6")
    async def test_one_read_of_a_long_log_is_bounded(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        for _ in range(11):
            await harness.append(ACME, run, telling(*["model.delta"] * 100))

        assert sequences(await port.read(ACME, run.id)) == list(range(1, MAX_READ + 1))

    @clause("EVE-7")
    async def test_what_was_read_reads_the_same_for_a_port_opened_anew(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        before = await port.read(ACME, run.id)

        await harness.append(ACME, run, telling("model.delta"))
        await harness.append(ACME, run, SUCCEEDED)
        reopened = await harness.reopen()

        assert (await port.read(ACME, run.id))[:2] == before
        assert await reopened.read(ACME, run.id) == await port.read(ACME, run.id)
        assert len(await reopened.read(ACME, run.id)) == 4

    @clause("EVE-7")
    async def test_what_a_reader_does_to_an_event_reaches_nobody_else(self, harness: EventHarness) -> None:
        port = await harness.open()
        run = await harness.start_run(ACME)
        await harness.append(ACME, run, Change(events=(NewEvent(type="model.delta", data={"text": "as written"}),)))
        [mine] = await port.read(ACME, run.id, after=2)

        mine.data["text"] = "forged"

        [again] = await port.read(ACME, run.id, after=2)
        assert again.data == {"text": "as written"}

    @clause("EVE-7")
    async def test_two_storages_do_not_share_their_runs(self, harness: EventHarness) -> None:
        await harness.open()
        run = await ended_run(harness)
        elsewhere = await harness.elsewhere()

        with pytest.raises(NotFound):
            await elsewhere.read(ACME, run.id)

    @clause("EVE-8")
    async def test_the_stream_epoch_names_the_storage(self, harness: EventHarness) -> None:
        port = await harness.open()

        same = await harness.reopen()
        other = await harness.elsewhere()

        assert same.stream_epoch == port.stream_epoch
        assert other.stream_epoch != port.stream_epoch
        assert 1 <= len(port.stream_epoch) <= 32
        assert port.stream_epoch.isascii()
        assert port.stream_epoch.isalnum()
        assert port.stream_epoch == port.stream_epoch.lower()


async def generator(port: EventPort, run: Run) -> AsyncGenerator[Event, None]:
    """`follow` as something that is closed at once, not when it is collected: the port promises an iterator only."""
    stream = port.follow(ACME, run.id)
    try:
        async for event in stream:
            yield event
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()
