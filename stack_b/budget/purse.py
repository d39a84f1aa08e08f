"""What this process holds of its tenants' budgets: taken in memory, booked in batches, prolonged while it lives.

A request takes of a chunk that was leased before, and the next one is leased while there is some of it left. Where none has
enough, one call leases for all who wait; near the limit, where the ledger spares nothing, that is an exact hold for the one
request. Nobody is refused for what this process holds idle, nor for what another does: before `budget_in_flight` is told, a
request waits for as long as idle chunks take to go back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from math import inf
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from msgspec import Struct

from ports.budget import NOTHING, TOKENS_PER_DAY, Account, Amount, BudgetLedger, Unit, UsageEvent
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, NotFound, ResourceExhausted, Unavailable
from ports.ids import TenantId
from stack_b.budget.chunks import PACE_S, REQUESTS, Chunk, PoolKey, chunk_of, next_requests, spare_for, used_by
from stack_b.budget.pools import FLUSH_EVENTS, Books, Pool, retire, ripe

FLUSH_AFTER: Final = timedelta(milliseconds=200)
"""How long usage waits for company on its way to the ledger."""
LOOK_EVERY: Final = timedelta(milliseconds=500)
"""For chunks that should go back, and leases that should go on."""
BOOK_TRIES: Final = 3
BOOK_RETRY: Final = timedelta(milliseconds=200)
REFUSED_IN_A_ROW: Final = 8
"""So many bookings, each of one event, and it is not they that are wrong: then the rest is refused as it is."""
TIGHT_S: Final = 1.0
"""After the ledger spared nothing, requests don't wait for each other in the hope of a chunk, for so long."""
PATIENCE_S: Final = 2.0
"""How long a request waits for what others hold: more than `IDLE_S` and `LOOK_EVERY`, after which idle chunks are back."""
ASK_AGAIN: Final = timedelta(milliseconds=100)
"""Meanwhile, one of a tenant's requests for all of them."""
DRAIN_S: Final = 10.0

ResultT = TypeVar("ResultT")

logger = logging.getLogger("agentos.gateway")


class Taken(Struct, frozen=True, eq=False):
    """What one request has of a chunk."""

    chunk: Chunk
    amount: Amount


class Purse:
    """`in_chunks`: lease more than a request needs. Without, each has a hold of its own, booked before it is over."""

    def __init__(self, ledger: BudgetLedger, clock: Clock, *, in_chunks: bool) -> None:
        self._ledger = ledger
        self._clock = clock
        self._in_chunks = in_chunks
        self._pools: dict[PoolKey, Pool] = {}
        self._books: dict[TenantId, Books] = {}
        self._patience: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()
        """Of whoever asks again and again, for room that others hold."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._lease = timedelta(0)

    async def take(self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta) -> Taken:
        """Raises the ledger's refusals, and `Unavailable`; nothing is held then."""
        if (chunk := self.at_hand(auth, amount, on, lease)) is not None:
            return Taken(chunk, amount)
        pool = self._pools.setdefault((auth.tenant, on), Pool())
        # Whoever leaves meanwhile leaves no hold behind: what is granted to it all the same goes back.
        task = self._kept(self._leased(auth, amount, on, lease, pool))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._unwanted)
            raise

    def at_hand(self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta) -> Chunk | None:
        """The same of a chunk that is leased already, as mostly: it was taken of this one."""
        pool = self._pools.get((auth.tenant, on))
        if pool is None or (chunk := pool.current) is None:
            return None
        now = self._clock.monotonic()
        if not chunk.take(amount.tokens, amount.nanousd, now):
            return None
        if (
            (chunk.free_tokens <= chunk.half or chunk.money or now >= chunk.old_at)
            and chunk.runs_out(now)
            and pool.ahead is None
            and now >= pool.tight_until
            and not pool.leasing.taken()
        ):
            pool.ahead = self._kept(self._leased_ahead(auth, amount, on, lease, pool))
        return chunk

    async def grow(self, taken: Taken, more: Amount, on: tuple[Account, ...], lease: timedelta) -> Taken:
        """`taken` and `more`: of its chunk, or by a call that extends it. Raises like `take`; then it stays as it was."""
        chunk = taken.chunk
        if not chunk.grow(more, self._clock.monotonic()):
            task = self._kept(self._extended(chunk, more, on, lease))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                task.add_done_callback(lambda done: self._unneeded(chunk, more, done))
                raise
        return Taken(chunk, taken.amount.plus(more))

    async def put(self, taken: Taken, events: tuple[UsageEvent, ...], *, wait_s: float) -> None:
        """The request is over. Its usage is booked in any case.

        An exact hold's is waited for, at most `wait_s`: who comes next, wherever, shall not be refused for its sake.
        """
        used = used_by(events)
        booking = self.over(taken.chunk, taken.amount, events, used.tokens, used.nanousd, wait_s=wait_s)
        if booking is not None:
            await booking

    def over(
        self, chunk: Chunk, held: Amount, events: tuple[UsageEvent, ...], tokens: int, nanousd: int, *, wait_s: float
    ) -> Awaitable[object] | None:
        """The same: what there is to wait for, if anything. `tokens` and `nanousd` are what `events` come to."""
        chunk.give_back(held, events, tokens, nanousd, self._clock.monotonic())
        if events and not chunk.retired and len(chunk.events) < FLUSH_EVENTS:
            # As mostly: it waits for company.
            if self._books[chunk.auth.tenant].due is None:
                self._soon(chunk.auth.tenant)
            return None
        task = self._changed(chunk)
        return asyncio.wait({task}, timeout=wait_s) if task is not None and chunk.exact else None

    def idle(self, tenant: TenantId, account: str = TOKENS_PER_DAY, unit: Unit = "tokens") -> int:
        """What is held of an account for requests to come: free for this process, held for everybody else."""
        books = self._books.get(tenant)
        chunks = books.chunks if books is not None else ()
        return sum(max(0, chunk.free.of(unit)) for chunk in chunks if account in chunk.accounts)

    async def drain(self) -> None:
        """Give everything back that no request holds, and book all usage. Called once, before the ledger closes."""
        for books in self._books.values():
            retire(books.chunks)
        try:
            async with asyncio.timeout(DRAIN_S):
                # A grant that comes late makes another task.
                while self._tasks:
                    await asyncio.wait(self._tasks)
                for books in self._books.values():
                    retire(books.chunks)
                while any(ripe(books.chunks) for books in self._books.values()):
                    for tenant in list(self._books):
                        await self._book(tenant)
        except TimeoutError:
            logger.warning("budget.not_drained")
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def _leased(
        self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta, pool: Pool
    ) -> Taken:
        pool.waiting += 1
        try:
            while (taken := self._of_current(amount, pool)) is None and pool.leasing.taken():
                # Who is before us may lease enough for us as well.
                await pool.leasing.over()
            if taken is not None:
                return taken
            if self._in_chunks and self._clock.monotonic() >= pool.tight_until:
                with pool.leasing:
                    return await self._granted(auth, amount, on, lease, pool)
            return await self._exact(auth, amount, on, lease, pool)
        except ResourceExhausted as refused:
            if not self._in_chunks or refused.code != "budget_in_flight":
                raise
            return await self._patiently(auth, amount, on, lease, pool)
        finally:
            pool.waiting -= 1

    def _of_current(self, amount: Amount, pool: Pool) -> Taken | None:
        chunk = pool.current
        if chunk is None or not chunk.take(amount.tokens, amount.nanousd, self._clock.monotonic()):
            return None
        return Taken(chunk, amount)

    async def _exact(
        self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta, pool: Pool
    ) -> Taken:
        async with pool.exact:
            return await self._granted(auth, amount, on, lease, pool)

    async def _patiently(
        self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta, pool: Pool
    ) -> Taken:
        """Refused for what others hold, which may be idle. Those who wait behind another one ask once more at the end."""
        ends = self._clock.monotonic() + PATIENCE_S
        turn = self._patience.setdefault(auth.tenant, asyncio.Lock())
        # Who was behind somebody asks at once: that one may have been served.
        at_once = turn.locked()
        async with turn:
            while self._clock.monotonic() < ends:
                if not at_once:
                    await self._clock.sleep(ASK_AGAIN)
                at_once = False
                try:
                    return await self._exact(auth, amount, on, lease, pool)
                except ResourceExhausted as refused:
                    if refused.code != "budget_in_flight" or self._clock.monotonic() >= ends:
                        raise
        return await self._exact(auth, amount, on, lease, pool)

    async def _leased_ahead(
        self, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta, pool: Pool
    ) -> None:
        """Put the next chunk in place of one that runs out, so that no request waits for the ledger meanwhile."""
        try:
            if not pool.leasing.taken():
                with pool.leasing:
                    self._back(await self._granted(auth, amount, on, lease, pool, ahead=True))
        except AgentOSError:
            # Who needs it asks for itself, and is told.
            pool.tight_until = self._clock.monotonic() + TIGHT_S
        finally:
            pool.ahead = None

    async def _granted(
        self,
        auth: AuthContext,
        amount: Amount,
        on: tuple[Account, ...],
        lease: timedelta,
        pool: Pool,
        *,
        ahead: bool = False,
    ) -> Taken:
        """`ahead`: nobody waits for it, so that nothing else is given up for it."""
        began = self._clock.monotonic()
        if began - pool.leased_at >= PACE_S:
            pool.requests = REQUESTS
        pool.leased_at = began
        tight = not self._in_chunks or began < pool.tight_until
        spare = NOTHING if tight else spare_for(amount, pool.requests)
        try:
            hold = await self._ledger.hold(auth, amount, on=on, lease=lease, spare=spare)
        except ResourceExhausted as error:
            pool.tight_until = began + TIGHT_S
            if ahead or error.code != "budget_in_flight" or not await self._returned(auth.tenant):
                raise
            began = self._clock.monotonic()
            hold = await self._ledger.hold(auth, amount, on=on, lease=lease)
        window_until = inf
        if hold.usable_until is not None:
            # Told by the clock that nobody sets, as each request would have to ask for the time else.
            window_until = self._clock.monotonic() + (hold.usable_until - self._clock.now()).total_seconds()
        chunk = chunk_of(auth, hold, on, monotonic=began, lease=lease, window_until=window_until)
        taken = chunk.take(amount.tokens, amount.nanousd, self._clock.monotonic())
        if not taken:
            # Granted at the very end of a window or lease: it is this request's all the same.
            chunk.took(amount)
        self._books.setdefault(auth.tenant, Books()).chunks.append(chunk)
        self._keep(lease)
        if chunk.free.holds(amount):
            if pool.current is not None:
                pool.requests = next_requests(pool.requests, began - pool.current.began)
                pool.current.retired = True
                self._soon(auth.tenant)
            pool.current = chunk
        else:
            # What nobody waits for is no request's own, and is fetched back for whoever needs it.
            chunk.exact, chunk.retired = not ahead, True
            if chunk.free != NOTHING:
                # Too little for another request here: others may need it.
                self._soon(auth.tenant)
            if not tight:
                pool.tight_until = began + TIGHT_S
        return Taken(chunk, amount)

    async def _returned(self, tenant: TenantId) -> bool:
        """Give back what this process holds of the tenant's budgets for nobody; whether there was anything."""
        if ahead := [pool.ahead for (of, _), pool in self._pools.items() if of == tenant and pool.ahead is not None]:
            await asyncio.wait(ahead)
        books = self._books.get(tenant)
        if books is None or not any(one.free != NOTHING or (one.events and not one.exact) for one in books.chunks):
            return False
        retire(books.chunks)
        await self._book(tenant)
        return True

    async def _extended(self, chunk: Chunk, more: Amount, on: tuple[Account, ...], lease: timedelta) -> None:
        books = self._books[chunk.auth.tenant]
        try:
            await self._extend(books, chunk, more, on, lease)
        except ResourceExhausted as error:
            if error.code != "budget_in_flight" or not await self._returned(chunk.auth.tenant):
                raise
            await self._extend(books, chunk, more, on, lease)

    async def _extend(
        self, books: Books, chunk: Chunk, more: Amount, on: tuple[Account, ...], lease: timedelta
    ) -> None:
        # Not while it is booked: what a booking keeps was reckoned before.
        async with books.booking:
            try:
                await self._ledger.extend(chunk.auth, chunk.hold, more, on=on, lease=lease)
            except (Conflict, NotFound):
                chunk.lost = chunk.retired = True
                raise Unavailable("the ledger was away for too long, and what was held is held no more") from None
            chunk.granted(more, self._clock.monotonic())

    def _unneeded(self, chunk: Chunk, more: Amount, granted: asyncio.Task[None]) -> None:
        """The request left while its extension was under way."""
        if not granted.cancelled() and granted.exception() is None:
            chunk.returned(more)
            if chunk.auth.tenant in self._books:
                self._soon(chunk.auth.tenant)

    def _unwanted(self, granted: asyncio.Task[Taken]) -> None:
        if not granted.cancelled() and granted.exception() is None:
            self._back(granted.result())

    def _back(self, taken: Taken) -> None:
        """Nothing of it was used."""
        taken.chunk.give_back(taken.amount, (), 0, 0, self._clock.monotonic())
        self._changed(taken.chunk)

    def _changed(self, chunk: Chunk) -> asyncio.Task[None] | None:
        """A request of it is over. The task that books it, where it is booked at once."""
        tenant = chunk.auth.tenant
        if chunk.retired and not chunk.requests:
            return self._kept(self._book(tenant))
        if len(chunk.events) >= FLUSH_EVENTS:
            books = self._books[tenant]
            if not books.full and not books.booking.locked():
                books.full = True
                self._kept(self._book(tenant))
            return None
        if (chunk.events or chunk.retired) and self._books[tenant].due is None:
            self._soon(tenant)
        return None

    def _soon(self, tenant: TenantId) -> None:
        books = self._books[tenant]
        if books.due is None:
            loop = asyncio.get_running_loop()
            books.due = loop.call_later(FLUSH_AFTER.total_seconds(), lambda: self._kept(self._book(tenant)))

    async def _book(self, tenant: TenantId) -> None:
        """Book what there is of the tenant. What can't be booked now stays, and the keeper tries again."""
        books = self._books.get(tenant)
        if books is None:
            return
        if books.due is not None:
            books.due.cancel()
            books.due = None
        async with books.booking:
            tries, least = 0, 1
            books.full, books.refused = False, 0
            while counts := ripe(books.chunks, least=least):
                if await self._booked(books, counts):
                    # What has come meanwhile waits for company, as this did.
                    least = FLUSH_EVENTS
                    continue
                tries += 1
                if tries == BOOK_TRIES:
                    return
                await self._clock.sleep(BOOK_RETRY * tries)
        if any(chunk.events for chunk in books.chunks):
            self._soon(tenant)

    async def _booked(self, books: Books, counts: dict[Chunk, int]) -> bool:
        """Whether the ledger has it, or never will."""
        auth = next(iter(counts)).auth
        bookings = [chunk.booking(count) for chunk, count in counts.items()]
        # What is given back is given back before the call: afterwards somebody else may have it.
        freed = {chunk: chunk.freed() for chunk in counts if chunk.retired}
        try:
            await self._ledger.book(auth, bookings)
        except AgentOSError as error:
            if error.retryable:
                # Booking twice changes nothing (BUD-12), so an unknown outcome may be tried again.
                for chunk, free in freed.items():
                    chunk.free_again(free)
                return False
            parts = _parts(counts)
            if parts and (len(counts) > 1 or books.refused < REFUSED_IN_A_ROW):
                # One that can't be booked takes no other with it.
                for chunk, free in freed.items():
                    chunk.free_again(free)
                return all([await self._booked(books, part) for part in parts])
            books.refused += 1
            tokens = sum(event.amount.tokens for booking in bookings for event in booking.events)
            logger.error(  # noqa: TRY400 - the code says it; a stack would not
                "budget.settle_failed", extra={"tenant_id": auth.tenant, "tokens": tokens, "code": error.code}
            )
        else:
            books.refused = 0
        for (chunk, count), booking in zip(counts.items(), bookings, strict=True):
            del chunk.events[:count]
            if booking.end:
                books.chunks.remove(chunk)
        return True

    def _keep(self, lease: timedelta) -> None:
        self._lease = lease
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keeping())

    async def _keeping(self) -> None:
        """Prolong the leases, a third of their time each; give back what is idle; book what could not be booked."""
        renewed = self._clock.monotonic()
        while any(books.chunks for books in self._books.values()):
            await self._clock.sleep(LOOK_EVERY)
            now = self._clock.monotonic()
            for tenant, books in list(self._books.items()):
                retire(chunk for chunk in books.chunks if chunk.due_back(now))
                if not books.booking.locked():
                    self._kept(self._book(tenant))
            if now - renewed >= self._lease.total_seconds() / 3:
                renewed = now
                await asyncio.gather(*(self._renewed(books, now) for books in self._books.values()))
            self._tidy(now)

    async def _renewed(self, books: Books, now: float) -> None:
        chunks = [chunk for chunk in books.chunks if not chunk.lost]
        if not chunks:
            return
        try:
            alive = await self._ledger.renew(chunks[0].auth, [chunk.hold for chunk in chunks], lease=self._lease)
        except AgentOSError as error:
            logger.warning("budget.not_renewed", extra={"tenant_id": chunks[0].auth.tenant, "code": error.code})
            return
        for chunk in chunks:
            if chunk.hold in alive:
                chunk.renewed(now + self._lease.total_seconds())
            else:
                chunk.lost = chunk.retired = True

    def _tidy(self, now: float) -> None:
        """Forget pools and tenants that nothing is held for; the pace of busy ones not before it is old."""
        for key, pool in list(self._pools.items()):
            unused = (pool.current is None or pool.current.retired) and not pool.waiting
            if unused and (pool.requests == REQUESTS or now - pool.leased_at >= PACE_S):
                del self._pools[key]
        for tenant, books in list(self._books.items()):
            if not books.chunks and books.due is None and not books.booking.locked():
                del self._books[tenant]

    def _kept(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """A task of `work`, held on to: the event loop itself only keeps weak references."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _parts(counts: dict[Chunk, int]) -> list[dict[Chunk, int]]:
    """The same in smaller bookings, by chunk and then in halves, the last with what is left; none where there are no
    smaller ones."""
    if len(counts) > 1:
        return [{chunk: count} for chunk, count in counts.items()]
    [(chunk, count)] = counts.items()
    return [{chunk: count // 2}, {chunk: count - count // 2}] if count > 1 else []
