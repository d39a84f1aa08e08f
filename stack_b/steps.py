"""Calls under a step key: each is made once, whoever asks for it how often, and goes on although its callers leave.

    join the call of this process → open its entry in the journal → a task that no client's leaving ends: hold budget …
    settle (`pipeline`) → journal the reply → answer

Only an explicit `abort` ends a call early. When the process is lost in the middle, the entry's lease lapses, and whoever
asks next makes the call again: its receipt says `possible_duplicate`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeAlias

from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, Unavailable
from ports.ids import TenantId
from ports.messages import Json
from ports.reply_journal import Done, Ticket, Won
from stack_b.budget.meter import SETTLE_BOUND_S
from stack_b.canonical import ChatCall
from stack_b.chunks import Piece, written_out
from stack_b.deps import StackBDeps
from stack_b.interrupt import out_of_time
from stack_b.pipeline import Pipeline
from stack_b.replay import (
    Gathered,
    again,
    chunks_of,
    digest_of,
    error_in,
    is_closing,
    is_final,
    may_be_paid,
    outcome_of,
    replayed,
)

LEASE: Final = timedelta(seconds=15)
"""How long a step waits for a process that was lost."""
EXTEND_EVERY: Final = timedelta(seconds=4)
"""Also how soon an abort reaches a call that another process makes."""
LOOK_EVERY: Final = timedelta(milliseconds=500)
"""At a call that another process makes."""
JOURNAL_RETRY: Final = timedelta(milliseconds=500)
JOURNAL_PATIENCE: Final = timedelta(seconds=60)
"""How long a paid reply waits for a journal that is away, before it is given out unwritten."""
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
    """One step key's call, as this process sees it."""

    key: str
    digest: str
    task: asyncio.Task[_Result] = field(init=False)
    call: asyncio.Task[dict[str, Json]] | None = None
    """The pipeline at work, once this process has won the entry."""
    callers: int = 0
    aborted: bool = False
    live: asyncio.Queue[Chunk | None] | None = None
    """Chunks for the first caller, as long as it listens. Bounded by the reply's own size, which is gathered anyhow."""
    closing: list[Chunk] = field(default_factory=list)
    """The chunks that say the reply is whole: told after it was journaled."""

    @contextmanager
    def attended(self) -> Iterator[None]:
        self.callers += 1
        try:
            yield
        finally:
            self.callers -= 1

    def abort(self) -> None:
        self.aborted = True
        if self.call is not None:
            self.call.cancel()

    def tell(self, chunk: Chunk) -> None:
        if self.closing or is_closing(chunk):
            self.closing.append(chunk)
        elif self.live is not None:
            self.live.put_nowait(chunk)

    def end(self, *, told: bool) -> None:
        """Nothing more comes; what was held back is told if the reply is safe."""
        if self.live is not None:
            for chunk in (*(self.closing if told else ()), None):
                self.live.put_nowait(chunk)


class Steps:
    """The step calls of this process."""

    def __init__(self, deps: StackBDeps, pipeline: Pipeline) -> None:
        self._journal = deps.reply_journal
        self._clock = deps.clock
        self._request_s = deps.limits.request_s
        self._pipeline = pipeline
        self._steps: dict[_Where, _Step] = {}

    async def chat(self, auth: AuthContext, call: ChatCall, key: str) -> dict[str, Json]:
        """The step's whole reply, with the receipt of when it was paid.

        Raises:
            Conflict: `idempotency_key_reused`; `idempotency_in_progress`: another process is still at it; `conflict`: it
                was aborted meanwhile.
        """
        step, first = await self._joined(auth, call, key)
        with step.attended():
            result = await self._result(step)
        return result.reply if first and result.made else replayed(result.reply, auth)

    async def stream(self, auth: AuthContext, call: ChatCall, key: str) -> AsyncGenerator[Sequence[Piece], None]:
        """The same as chunks: as they come for whoever makes the call, as one stream for all others."""
        step, first = await self._joined(auth, call, key)
        with step.attended():
            if first and step.live is not None:
                try:
                    while (chunk := await step.live.get()) is not None:
                        yield (chunk,)
                finally:
                    step.live = None
            result = await self._result(step)
        if not (first and result.made):
            yield chunks_of(replayed(result.reply, auth), include_usage=call.include_usage)

    async def abort(self, auth: AuthContext, key: str) -> bool:
        """End the call under way, in this process or another; whether there was one."""
        step = self._steps.get((auth.tenant, auth.namespace, key))
        if step is not None:
            step.abort()
            await asyncio.wait({step.task}, timeout=ABORT_WAIT_S)
        return await self._journal.cancel(auth, key) or step is not None

    async def drain(self) -> None:
        """Let the calls under way end, within the grace; then cut them off. Called once, before the ports close."""
        under_way = {step.task for step in self._steps.values()}
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=SETTLE_BOUND_S)

    async def _joined(self, auth: AuthContext, call: ChatCall, key: str) -> tuple[_Step, bool]:
        """The step's call in this process, and whether it began with this caller."""
        await self._pipeline.admit(auth)
        where, digest = (auth.tenant, auth.namespace, key), digest_of(call)
        step = self._steps.get(where)
        if step is not None:
            if step.digest != digest:
                raise Conflict(
                    f"the step key {key!r} belongs to another request; another step has another key",
                    code="idempotency_key_reused",
                )
            return step, False
        step = _Step(key=key, digest=digest, live=asyncio.Queue() if call.stream else None)
        step.task = asyncio.create_task(self._run(auth, call, step))
        step.task.add_done_callback(lambda _: self._ended(where, step))
        self._steps[where] = step
        return step, True

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
            raise _in_progress(step.key)
        if step.task.cancelled():
            raise Unavailable("the gateway is shutting down; ask again")
        error = step.task.exception()
        if isinstance(error, AgentOSError):
            raise again(error) from error
        return step.task.result()

    # In the step's own task.

    async def _run(self, auth: AuthContext, call: ChatCall, step: _Step) -> _Result:
        made = False
        try:
            found = await self._opened(auth, step)
            if isinstance(found, Done):
                if "error" in found.outcome:
                    raise error_in(found.outcome["error"])
                return _Result(reply=found.outcome["reply"], made=False)
            async with self._held(auth, found.ticket, step):
                reply = await self._made(auth, call, found, step)
            made = True
            return _Result(reply=reply, made=True)
        finally:
            step.end(told=made)

    async def _opened(self, auth: AuthContext, step: _Step) -> Won | Done:
        """The entry, once nobody else holds it. Here, leaving counts: nothing is paid by this process yet."""
        end = self._clock.monotonic() + self._request_s
        while True:
            found = await self._journal.open(auth, step.key, step.digest, lease=LEASE)
            if isinstance(found, Won) and step.aborted:
                await self._abandon(auth, found.ticket, maybe_made=False)
            if step.aborted:
                raise _aborted(step.key)
            if isinstance(found, Won | Done):
                return found
            await self._clock.sleep(LOOK_EVERY)
            if step.callers == 0 or self._clock.monotonic() >= end:
                raise _in_progress(step.key)

    async def _made(self, auth: AuthContext, call: ChatCall, won: Won, step: _Step) -> dict[str, Json]:
        """Make the call, and journal what came of it before anybody hears of it."""
        work = self._streamed if call.stream else self._whole
        step.call = asyncio.create_task(work(auth, call, step, possible_duplicate=won.possible_duplicate))
        try:
            await asyncio.wait({step.call})
        except asyncio.CancelledError:
            # The process ends, and has waited for as long as it may. What was used is settled on the call's way out.
            step.call.cancel()
            await asyncio.wait({step.call})
            await self._abandon(auth, won.ticket, maybe_made=True)
            raise
        if step.call.cancelled():
            await self._abandon(auth, won.ticket, maybe_made=True)
            raise _aborted(step.key)
        error = step.call.exception()
        if error is None:
            await self._complete(auth, won.ticket, {"reply": step.call.result()})
            return step.call.result()
        if isinstance(error, AgentOSError) and is_final(error):
            await self._complete(auth, won.ticket, {"error": outcome_of(error)})
        else:
            await self._abandon(auth, won.ticket, maybe_made=may_be_paid(error))
        raise error

    async def _whole(
        self, auth: AuthContext, call: ChatCall, _step: _Step, *, possible_duplicate: bool
    ) -> dict[str, Json]:
        return await self._pipeline.chat(auth, call, possible_duplicate=possible_duplicate)

    async def _streamed(
        self, auth: AuthContext, call: ChatCall, step: _Step, *, possible_duplicate: bool
    ) -> dict[str, Json]:
        gathered = Gathered()
        chunks = self._pipeline.stream(auth, call, possible_duplicate=possible_duplicate)
        try:
            async with asyncio.timeout(self._request_s), aclosing(chunks):
                async for pieces in chunks:
                    for chunk in written_out(pieces):
                        gathered.add(chunk)
                        step.tell(chunk)
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
                if await self._journal.extend(auth, ticket, lease=LEASE):
                    step.abort()
            except Conflict:
                # Completed, or overtaken while the journal was away. The reply may still be of use to our callers.
                return
            except AgentOSError as error:
                logger.warning("step.extend_failed", extra={"tenant_id": auth.tenant, "code": error.code})

    async def _complete(self, auth: AuthContext, ticket: Ticket, outcome: Json) -> None:
        """Write the outcome down, however long the journal is away: until then it is in this process only.

        Afterwards it is told in any case. Keeping it back would lose for sure what telling it may save.
        """
        end = self._clock.monotonic() + JOURNAL_PATIENCE.total_seconds()
        while True:
            try:
                await self._journal.complete(auth, ticket, outcome)
            except AgentOSError as error:
                if error.retryable and self._clock.monotonic() < end:
                    await self._clock.sleep(JOURNAL_RETRY)
                    continue
                logger.error(  # noqa: TRY400 - the code says it; a stack would not
                    "step.not_journaled", extra={"tenant_id": auth.tenant, "code": error.code}
                )
            return

    async def _abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        try:
            await self._journal.abandon(auth, ticket, maybe_made=maybe_made)
        except AgentOSError as error:
            # The lease ends by itself, and then says the most careful thing.
            logger.warning("step.not_abandoned", extra={"tenant_id": auth.tenant, "code": error.code})


def _in_progress(key: str) -> Conflict:
    return Conflict(
        f"the call under the step key {key!r} is still at work; ask again for its reply",
        code="idempotency_in_progress",
        retry_after=timedelta(seconds=1),
    )


def _aborted(key: str) -> Conflict:
    return Conflict(f"the call under the step key {key!r} was aborted")
