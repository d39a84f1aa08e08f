"""A model's text is told while it grows: a few events per second, in order, and never against the store's word."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import Conflict, Unavailable
from ports.ids import RunId
from ports.messages import Usage
from ports.model import ChatDelta, ChatReply, ChatRequest, Message, PolicyOutcome, Route
from ports.run_state import Appended, Change
from stack_a.runs.deltas import MAX_TOLD_BYTES, PIECE_BYTES
from stack_a.runs.execute import TELL_TEXT_WITHIN, TELL_WITHIN
from stack_a.worker import RETRY_AFTER
from tests.support.stack_a import StackA, events_of, stack_a

pytestmark = pytest.mark.anyio


class Talker(InprocModel):
    """Says what a test hands it, when it hands it. `BROKEN` breaks an answer off, `END` completes it."""

    def __init__(self) -> None:
        super().__init__(InprocModelConfig(chat_models=("m",)))
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self.calls = 0
        self.closed = 0

    def say(self, *words: str) -> None:
        for word in words:
            self._words.put_nowait(word)

    async def stream(self, _auth: AuthContext, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        self.calls += 1
        said = ""
        try:
            while (word := await self._words.get()) is not END:
                if word is BROKEN:
                    raise Unavailable("the backend went away", code="upstream_error")
                said += word
                yield ChatDelta(text=word)
        finally:
            self.closed += 1
        yield ChatDelta(
            reply=ChatReply(
                message=Message(role="assistant", content=said),
                finish_reason="stop",
                usage=Usage(prompt_tokens=1, completion_tokens=1),
                policy_outcome=PolicyOutcome(decision="allowed"),
                route=Route(backend="talker", model=request.model),
            )
        )


END = "(end)"
BROKEN = "(broken)"


class Store:
    """A run store that a test may break for deltas only, and that counts its writes."""

    def __init__(self, port: Any) -> None:
        self._port = port
        self.refusal: Exception | None = None
        self.commits_with_deltas = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        if [event.type for event in change.events].count("model.delta") == len(change.events) > 0:
            self.commits_with_deltas += 1
            if self.refusal is not None:
                raise self.refusal
        appended: Appended = await self._port.append(auth, run_id, epoch, change)
        return appended


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def stores() -> list[Store]:
    return []


@pytest.fixture
async def node(clock: ManualClock, stores: list[Store]) -> AsyncIterator[StackA]:
    def wrap(name: str, port: Any) -> Any:
        if name != "run_state":
            return port
        stores.append(Store(port))
        return stores[0]

    async with stack_a(clock=clock, wrap=wrap) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def settle() -> None:
    """Let everybody act who can."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def log_of(node: StackA, run_id: str) -> list[dict[str, Any]]:
    return events_of((await node.get(f"/v1/runs/{run_id}/events")).text)


async def told_so_far(node: StackA, run_id: str) -> list[dict[str, Any]]:
    events = await node.api.event.read(ACME, RunId(run_id))
    return [event.data for event in events if event.type == "model.delta"]


async def test_text_is_told_while_the_model_still_speaks_a_few_events_a_second(
    node: StackA, clock: ManualClock
) -> None:
    talker = Talker()
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        await until(lambda: talker.calls == 1)
        talker.say("The ", "answer ")
        await settle()
        before = await told_so_far(node, run_id)
        await clock.advance(TELL_WITHIN)
        first = await told_so_far(node, run_id)
        talker.say("is ", "42.")
        await settle()
        await clock.advance(TELL_WITHIN)
        too_soon = await told_so_far(node, run_id)
        await clock.advance(TELL_TEXT_WITHIN)
        both = await told_so_far(node, run_id)
        talker.say(" Really.", END)
        run = await node.ended(run_id)

    assert before == []
    assert first == [{"step": 1, "attempt": 1, "text": "The answer "}]
    assert too_soon == first
    assert [delta["text"] for delta in both] == ["The answer ", "is 42."]
    events = await log_of(node, run_id)
    deltas = [event["data"]["text"] for event in events if event["event"] == "model.delta"]
    [completed] = [event for event in events if event["event"] == "model.completed"]
    assert deltas == ["The answer ", "is 42.", " Really."]
    assert completed["data"]["text"] == "".join(deltas)
    assert run.output == {"text": "The answer is 42. Really."}
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))


async def test_a_short_answer_costs_no_commit_of_its_own(node: StackA, clock: ManualClock, stores: list[Store]) -> None:
    talker = Talker()
    talker.say("Yes.", END)
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        await node.ended(run_id)

    assert stores[0].commits_with_deltas == 0
    assert [delta["text"] for delta in await told_so_far(node, run_id)] == ["Yes."]


async def test_much_text_at_once_is_told_at_once_in_bounded_events(node: StackA, clock: ManualClock) -> None:
    talker = Talker()
    text = "é€\U0001f600" * 1_500
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        await until(lambda: talker.calls == 1)
        await settle()
        await clock.advance(TELL_WITHIN)
        talker.say(text)
        await settle()
        told = await told_so_far(node, run_id)
        talker.say(END)
        await node.ended(run_id)

    assert "".join(delta["text"] for delta in told) == text
    assert max(len(delta["text"].encode()) for delta in told) <= PIECE_BYTES
    assert len(told) == 4


async def test_what_is_told_of_one_answer_is_bounded_and_the_completion_has_it_whole(
    node: StackA, clock: ManualClock
) -> None:
    talker = Talker()
    talker.say(*["x" * 50_000] * 10, END)
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        run = await node.ended(run_id)

    told = "".join(delta["text"] for delta in await told_so_far(node, run_id))
    assert MAX_TOLD_BYTES - PIECE_BYTES < len(told) <= MAX_TOLD_BYTES
    assert run.output == {"text": "x" * 500_000}


async def test_an_answer_that_breaks_off_is_told_anew_as_another_attempt(node: StackA, clock: ManualClock) -> None:
    talker = Talker()
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        talker.say("I thi")
        await until(lambda: talker.calls == 1)
        await settle()
        await clock.advance(TELL_WITHIN)
        talker.say("nk so", BROKEN, "I know.", END)
        await settle()
        await clock.advance(timedelta(seconds=10))
        await node.ended(run_id)

    assert talker.calls == talker.closed == 2
    assert await told_so_far(node, run_id) == [
        {"step": 1, "attempt": 1, "text": "I thi"},
        {"step": 1, "attempt": 2, "text": "I know."},
    ]


async def test_a_worker_that_takes_over_tells_a_later_attempt(node: StackA, clock: ManualClock) -> None:
    first, second = Talker(), Talker()
    async with node.worker(first, InprocTools([], clock)):
        run_id = await node.created()
        first.say("Half an ans")
        await until(lambda: first.calls == 1)
        await settle()
        await clock.advance(TELL_WITHIN)
    second.say("The answer.", END)
    async with node.worker(second, InprocTools([], clock)):
        for _ in range(40):
            await clock.advance(timedelta(seconds=1))
        await node.ended(run_id)

    attempts = [(delta["attempt"], delta["text"]) for delta in await told_so_far(node, run_id)]
    assert [text for _, text in attempts] == ["Half an ans", "The answer."]
    assert attempts[0][0] < attempts[1][0]


async def test_a_store_that_is_away_for_a_moment_has_the_answer_told_anew(
    node: StackA, clock: ManualClock, stores: list[Store]
) -> None:
    talker = Talker()
    async with node.worker(talker, InprocTools([], clock)):
        run_id = await node.created()
        talker.say("Before, ")
        await until(lambda: talker.calls == 1)
        await settle()
        await clock.advance(TELL_WITHIN)
        stores[0].refusal = Unavailable("the database restarts")
        talker.say("lost, ")
        await settle()
        await clock.advance(TELL_TEXT_WITHIN)
        await until(lambda: talker.closed == 1)
        stores[0].refusal = None
        talker.say("and after.", END)
        # What did not answer is not asked again at once.
        await clock.advance(RETRY_AFTER)
        run = await node.ended(run_id)

    told = await told_so_far(node, run_id)
    assert run.output == {"text": "and after."}
    assert [delta["text"] for delta in told] == ["Before, ", "and after."]
    assert told[0]["attempt"] < told[1]["attempt"]
    assert talker.calls == talker.closed == 2


async def test_a_worker_that_lost_the_run_stops_the_call_and_writes_nothing(
    node: StackA, clock: ManualClock, stores: list[Store]
) -> None:
    talker = Talker()
    async with node.worker(talker, InprocTools([], clock)) as worker:
        run_id = await node.created()
        talker.say("mine")
        await until(lambda: talker.calls == 1)
        await settle()
        await clock.advance(TELL_WITHIN)
        stores[0].refusal = Conflict("another worker has it", code="fenced")
        talker.say(", or whose?")
        await settle()
        await clock.advance(TELL_TEXT_WITHIN)
        await until(lambda: worker.active == 0)

    events = await node.api.event.read(ACME, RunId(run_id))
    assert talker.closed == 1
    assert (events[-1].type, events[-1].data["text"]) == ("model.delta", "mine")
    assert (await node.run_state.load(ACME, RunId(run_id))).status == "running"
