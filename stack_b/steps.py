"""Calls under a key (see `once`): each is made once, whoever asks for it how often, and goes on although its callers leave.

    join the call of this process → open its entry in the journal → a task that no client's leaving ends: hold budget …
    settle (`pipeline`) → journal the reply → answer

Only an explicit `abort` ends a call early, or the end of its callers' patience where that has one. When the process is lost
in the middle, the entry's lease lapses, and whoever asks next makes the call again: its receipt says `possible_duplicate`.

A call that was begun without a key gets one when its client leaves or a retry of it comes (`flights`): from then on it is
followed here like any other.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeAlias

from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, Unavailable, again
from ports.ids import TenantId
from ports.messages import Json
from ports.reply_journal import Done, Ticket, Won
from stack_b.broadcast import Broadcast
from stack_b.budget.meter import SETTLE_BOUND_S
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.chunks import Piece, written_out
from stack_b.deps import StackBDeps
from stack_b.entries import Entries, reused
from stack_b.flights import Flight, Flights
from stack_b.interrupt import out_of_time
from stack_b.once import Client, Once, digest, of_retry
from stack_b.pipeline import Pipeline
from stack_b.relay import Show
from stack_b.replay import (
    Gathered,
    chunks_of,
    closing_of,
    error_in,
    is_closing,
    is_final,
    is_streamed,
    may_be_paid,
    outcome_of,
    replayed,
)

EXTEND_EVERY: Final = timedelta(seconds=4)
"""Also how soon an abort reaches a call that another process makes."""
LOOK_EVERY: Final = timedelta(milliseconds=500)
"""At a call that another process makes."""
ABORT_WAIT_S: Final = 2.0
DRAIN_S: Final = 15.0
"""For calls without a client after SIGTERM. What isn't done by then is cut off, and may be a duplicate when asked again."""

Chunk: TypeAlias = dict[str, Json]
_Where: TypeAlias = tuple[TenantId, str, str]

logger = logging.getLogger("agentos.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    reply: dict[str, Json]
    made: bool
    """By this process, for its first caller; else it comes from the journal."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Step:
    """One key's call, as this process sees it."""

    once: Once
    digest: str
    flight: Flight | None = None
    """The call, where it was begun without a key."""
    task: asyncio.Task[_Result] = field(init=False)
    call: asyncio.Task[dict[str, Json]] | None = None
    """The pipeline at work, once this process has won the entry."""
    callers: int = 0
    left_at: float = 0.0
    """When the last of them did."""
    aborted: bool = False
    said: Broadcast[Chunk] | None = None
    """Chunks for all who ask for a stream. Bounded by the reply's own size, which is gathered anyhow."""
    closing: list[Chunk] = field(default_factory=list)
    """The chunks that say the reply is whole: told after it was journaled."""

    def abort(self) -> None:
        self.aborted = True
        if self.call is not None:
            self.call.cancel()
        if self.flight is not None and self.flight.gone:
            self.flight.give_up()

    def tell(self, chunk: Chunk) -> None:
        if self.closing or is_closing(chunk):
            self.closing.append(chunk)
        elif self.said is not None:
            self.said.tell(chunk)


class Steps:
    """The calls under a key of this process, and those that may get one."""

    def __init__(self, deps: StackBDeps, pipeline: Pipeline) -> None:
        self._entries = Entries(deps.reply_journal, deps.vault, deps.clock)
        self._clock = deps.clock
        self._request_s = deps.limits.request_s
        self._pipeline = pipeline
        self._steps: dict[_Where, _Step] = {}
        self._waits: set[asyncio.Task[None]] = set()
        self._flights = Flights(self._left)

    async def whole(self, auth: AuthContext, call: ChatCall | EmbedCall, once: Once) -> dict[str, Json]:
        """The whole reply, with the receipt of when it was paid.

        Raises:
            Conflict: `idempotency_key_reused`; `idempotency_in_progress`: another process is still at it; `conflict`: it
                was aborted meanwhile.
        """
        step, first = await self._joined(auth, call, once)
        with self._attended(step):
            if not first:
                await self._pipeline.anew.permitted(auth, call)
            result = await self._result(step)
        if first and result.made:
            return result.reply
        reply = result.reply if result.made else await self._pipeline.anew.shown(auth, call, result.reply)
        self._pipeline.recorder.replayed(auth, call, reply, joined=result.made)
        return replayed(reply, auth, joined=result.made)

    async def stream(self, auth: AuthContext, call: ChatCall, once: Once) -> AsyncGenerator[Sequence[Piece], None]:
        """The same as chunks, from the first one on, whenever one comes."""
        step, first = await self._joined(auth, call, once)
        alone = step.said is not None and not step.callers and (step.flight is None or step.flight.gone)
        async with AsyncExitStack() as held:
            with self._attended(step):
                seat = await held.enter_async_context(self._pipeline.seats.seated(auth, step.task, alone=alone))
                if not first:
                    await self._pipeline.anew.permitted(auth, call)
                if step.said is not None:
                    async with aclosing(step.said.listen()) as said:
                        async for chunk in said:
                            seat.reading = True
                            yield (chunk,)
                result = await self._result(step)
            await seat.take()
            reply = result.reply if result.made else await self._pipeline.anew.shown(auth, call, result.reply)
            if first and result.made:
                last = step.closing
            elif step.said is not None and result.made:
                last = closing_of(replayed(reply, auth, joined=True), include_usage=call.include_usage)
            else:
                last = chunks_of(replayed(reply, auth, joined=result.made), include_usage=call.include_usage)
            yield last
        if not (first and result.made):
            self._pipeline.recorder.replayed(auth, call, reply, joined=result.made)

    def flight(self, auth: AuthContext, call: ChatCall | EmbedCall, client: Client) -> Flight:
        """A call without a key, which a retry of its client may join."""
        return Flight(self._flights, auth, call, client, began=self._clock.monotonic())

    def _left(self, flight: Flight) -> bool:
        once = of_retry(flight.auth, flight.call, flight.client.retries)
        where = _where(flight.auth, once)
        step = self._steps.get(where)
        if step is not None and step.flight is flight:
            return True
        # Two that are the same can't be told apart by their retries: the first one that was left is joined by all.
        if step is not None or flight.begun or not flight.client.timed_out(self._clock.monotonic() - flight.began):
            return False
        self._begun(flight.auth, flight.call, once, flight)
        self._unattended(self._steps[where])
        return True

    async def abort(self, auth: AuthContext, once: Once, route: str) -> bool:
        """End the call under way, in this process or another; whether there was one. Who asked for it is noted."""
        step = self._steps.get(_where(auth, once))
        if step is not None:
            step.abort()
            await asyncio.wait({step.task}, timeout=ABORT_WAIT_S)
        aborted = step is not None
        try:
            aborted = await self._entries.cancel(auth, once.key) or aborted
        finally:
            # What was ended here is ended, whether the journal answers or not.
            self._pipeline.recorder.told_to_end(auth, route, aborted=aborted)
        return aborted

    async def drain(self) -> None:
        """Let the calls under way end, within the grace; then cut them off. Called once, before the ports close."""
        for wait in self._waits:
            wait.cancel()
        under_way = {step.task for step in self._steps.values()}
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=SETTLE_BOUND_S)

    async def _joined(self, auth: AuthContext, call: ChatCall | EmbedCall, once: Once) -> tuple[_Step, bool]:
        """The key's call in this process, and whether it is this caller's."""
        tenant = await self._pipeline.admit(auth)
        step = self._steps.get(_where(auth, once))
        if step is not None:
            if step.digest != digest(auth, call):
                raise reused(once)
            return step, False
        flight = None if once.patience is None else self._flights.same(auth, call)
        seat = self._pipeline.seats.of_call(auth, tenant) if flight is None and is_streamed(call) else None
        return self._begun(auth, call, once, flight, seat), flight is None

    def _begun(
        self,
        auth: AuthContext,
        call: ChatCall | EmbedCall,
        once: Once,
        flight: Flight | None,
        give_back: Callable[[], None] | None = None,
    ) -> _Step:
        """`give_back`: the place of a stream that is not in flight."""
        where = _where(auth, once)
        step = _Step(
            once=once, digest=digest(auth, call), flight=flight, said=Broadcast() if is_streamed(call) else None
        )
        if flight is not None:
            flight.joined()
        step.task = asyncio.create_task(self._run(auth, call, step))
        step.task.add_done_callback(lambda _: self._ended(where, step))
        if give_back is not None:
            step.task.add_done_callback(lambda _: give_back())
        self._steps[where] = step
        return step

    @contextmanager
    def _attended(self, step: _Step) -> Iterator[None]:
        step.callers += 1
        try:
            yield
        finally:
            step.callers -= 1
            self._unattended(step)

    def _unattended(self, step: _Step) -> None:
        """End the call when nobody comes back for it in time."""
        if step.callers or step.once.patience is None or step.task.done():
            return
        step.left_at = self._clock.monotonic()
        wait = asyncio.create_task(self._until_given_up(step, step.once.patience))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    async def _until_given_up(self, step: _Step, patience: timedelta) -> None:
        await self._clock.sleep(patience)
        if not step.callers and self._clock.monotonic() - step.left_at >= patience.total_seconds():
            step.abort()

    def _ended(self, where: _Where, step: _Step) -> None:
        del self._steps[where]
        if step.task.cancelled():
            return
        error = step.task.exception()
        if error is not None and not isinstance(error, AgentOSError) and step.callers == 0:
            logger.error("step.crashed", exc_info=error, extra={"tenant_id": where[0]})

    async def _result(self, step: _Step) -> _Result:
        # The call's own deadline comes first, and is settled before it is told.
        await asyncio.wait({step.task}, timeout=self._request_s + SETTLE_BOUND_S)
        if not step.task.done():
            raise _in_progress(step.once)
        if step.task.cancelled():
            raise Unavailable("the gateway is shutting down; ask again")
        error = step.task.exception()
        if isinstance(error, AgentOSError):
            raise again(error) from error
        return step.task.result()

    # In the step's own task.

    async def _run(self, auth: AuthContext, call: ChatCall | EmbedCall, step: _Step) -> _Result:
        try:
            found = await (self._opened(auth, step) if step.flight is None else self._written(auth, step))
            if isinstance(found, Done):
                outcome = self._entries.outcome(auth, step.once, found.outcome)
                if "error" in outcome:
                    raise error_in(outcome["error"])
                return _Result(reply=outcome["reply"], made=False)
            if found is None:
                return _Result(reply=await self._work(auth, call, step, possible_duplicate=False), made=True)
            async with self._held(auth, found.ticket, step):
                reply = await self._made(auth, call, found, step)
            return _Result(reply=reply, made=True)
        finally:
            if step.said is not None:
                step.said.end()

    async def _opened(self, auth: AuthContext, step: _Step) -> Won | Done:
        """The entry, once nobody else holds it. Here, leaving counts: nothing is paid by this process yet."""
        end = self._clock.monotonic() + self._request_s
        while True:
            found = await self._entries.open(auth, step.once, step.digest)
            if isinstance(found, Won) and step.aborted:
                await self._entries.abandon(auth, found.ticket, maybe_made=False)
            if step.aborted:
                raise _aborted(step.once)
            if isinstance(found, Won | Done):
                return found
            await self._clock.sleep(LOOK_EVERY)
            if step.callers == 0 or self._clock.monotonic() >= end:
                raise _in_progress(step.once)

    async def _written(self, auth: AuthContext, step: _Step) -> Won | None:
        """The entry of a call that is under way already, so that other processes know of it; None where there can't be one.

        Then the retry is told all the same what it has joined, if it comes to this process.
        """
        try:
            found = await self._entries.open(auth, step.once, step.digest)
        except AgentOSError as error:
            logger.warning("step.not_opened", extra={"tenant_id": auth.tenant, "code": error.code})
            return None
        return found if isinstance(found, Won) else None

    async def _made(self, auth: AuthContext, call: ChatCall | EmbedCall, won: Won, step: _Step) -> dict[str, Json]:
        """Make the call, and journal what came of it before anybody hears of it."""
        step.call = asyncio.create_task(self._work(auth, call, step, possible_duplicate=won.possible_duplicate))
        try:
            await asyncio.wait({step.call})
        except asyncio.CancelledError:
            # The process ends, and has waited for as long as it may. What was used is settled on the call's way out.
            step.call.cancel()
            await asyncio.wait({step.call})
            await self._entries.abandon(auth, won.ticket, maybe_made=True)
            raise
        if step.call.cancelled():
            await self._entries.abandon(auth, won.ticket, maybe_made=True)
            raise _aborted(step.once)
        error = step.call.exception()
        if error is None:
            await self._entries.complete(auth, won.ticket, step.once, {"reply": step.call.result()})
            return step.call.result()
        if isinstance(error, AgentOSError) and is_final(error):
            await self._entries.complete(auth, won.ticket, step.once, {"error": outcome_of(error)})
        else:
            await self._entries.abandon(auth, won.ticket, maybe_made=may_be_paid(error))
        raise error

    async def _work(
        self, auth: AuthContext, call: ChatCall | EmbedCall, step: _Step, *, possible_duplicate: bool
    ) -> dict[str, Json]:
        if isinstance(call, EmbedCall):
            if step.flight is not None:
                return await step.flight.reply()
            return await self._pipeline.embed(auth, call, possible_duplicate=possible_duplicate)
        if call.stream:
            return await self._streamed(auth, call, step, possible_duplicate=possible_duplicate)
        if step.flight is not None:
            return await step.flight.reply()
        return await self._pipeline.chat(auth, call, possible_duplicate=possible_duplicate)

    async def _streamed(
        self, auth: AuthContext, call: ChatCall, step: _Step, *, possible_duplicate: bool
    ) -> dict[str, Json]:
        gathered = Gathered()

        async def show(pieces: Sequence[Piece]) -> None:
            for chunk in written_out(pieces):
                gathered.add(chunk)
                step.tell(chunk)

        try:
            async with asyncio.timeout(self._request_s):
                if step.flight is not None:
                    await each(step.flight.chunks(), show)
                else:
                    await self._pipeline.stream(auth, call, show, possible_duplicate=possible_duplicate, seated=True)
        except TimeoutError:
            raise out_of_time(self._request_s) from None
        return gathered.reply()

    @asynccontextmanager
    async def _held(self, auth: AuthContext, ticket: Ticket, step: _Step) -> AsyncIterator[None]:
        """Around a call: its entry stays this process's, and an abort that another one was told arrives."""
        keeper = asyncio.create_task(self._keep(auth, ticket, step))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})

    async def _keep(self, auth: AuthContext, ticket: Ticket, step: _Step) -> None:
        while True:
            await self._clock.sleep(EXTEND_EVERY)
            try:
                if await self._entries.extend(auth, ticket):
                    step.abort()
            except Conflict:
                # Completed, or overtaken while the journal was away. The reply may still be of use to our callers.
                return
            except AgentOSError as error:
                logger.warning("step.extend_failed", extra={"tenant_id": auth.tenant, "code": error.code})


async def each(chunks: AsyncGenerator[Sequence[Piece], None], show: Show) -> None:
    """Shows all of `chunks`, which are closed on every way out."""
    async with aclosing(chunks):
        async for pieces in chunks:
            await show(pieces)


def _where(auth: AuthContext, once: Once) -> _Where:
    return (auth.tenant, auth.namespace, once.key)


def _in_progress(once: Once) -> Conflict:
    return Conflict(
        f"the call under {once.named} is still at work; ask again for its reply",
        code="idempotency_in_progress",
        retry_after=timedelta(seconds=1),
    )


def _aborted(once: Once) -> Conflict:
    return Conflict(f"the call under {once.named} was aborted")
