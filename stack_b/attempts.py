"""Calling candidates one after the other until one answers, each attempt accounted: the pipeline's call and fallback.

Whatever comes of an attempt, what it used or may have used is in `spending` before the next one begins.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

from msgspec.structs import replace

from ports.clock import Clock
from ports.errors import AgentOSError
from ports.messages import Json, Usage
from stack_b.backends.catalog import Candidate
from stack_b.budget.estimate import estimated_tokens
from stack_b.budget.held import Held
from stack_b.budget.slices import Slices, cuttable
from stack_b.budget.spending import Served
from stack_b.calling import Calling, calling
from stack_b.chunks import Piece
from stack_b.limits import Limits
from stack_b.prepare import Ready
from stack_b.receipt import Trail
from stack_b.routing.choice import may_fall_back
from stack_b.routing.router import Router
from stack_b.streaming import StreamShaper
from stack_b.tell import Tell
from stack_b.usage import NO_KINDS, kinds_of, usage_of

Act: TypeAlias = Callable[[Candidate, int], Awaitable[dict[str, Json]]]
"""Calls a candidate, which may write so many tokens."""
Show: TypeAlias = Callable[[list[Piece]], Awaitable[None]]
"""Raises `relay.NotShown` where something can't be shown."""


class Attempts:
    """Holds no state of a request."""

    def __init__(self, router: Router, clock: Clock, limits: Limits, tell: Tell) -> None:
        self._router = router
        self._monotonic = clock.monotonic
        self._slice_tokens = limits.output_slice_tokens
        self._tell = tell

    async def whole(
        self,
        ready: Ready,
        spending: Held,
        trail: Trail,
        act: Act,
        written: Callable[[dict[str, Json]], int],
        *,
        begun: Calling | None = None,
    ) -> dict[str, Json]:
        """The first whole answer that a candidate gives. `written` measures how much a backend wrote.

        `begun`: the call of the first one is under way, and `act` waits for it.
        """
        failure: AgentOSError | None = None
        slices: Slices | None = None
        tries = self._router.tries(ready.candidates)
        if begun is not None:
            # Whatever has become of its breaker by now.
            tries = chain(ready.candidates[:1], self._router.tries(ready.candidates[1:]))
        for candidate in tries:
            if failure is None and ready.ask.holds_all:
                # What was held was reckoned for the dearest of them.
                max_tokens = most(ready, candidate)
            else:
                slices = slices or self.slices(ready, spending)
                max_tokens = await self._allowed(ready, candidate, spending, slices, failure, in_slices=False)
            ready.answer.served_by(candidate)
            try:
                with begun or self.calling(ready, trail, candidate):
                    begun = None
                    answer = await act(candidate, max_tokens)
                usage = self.used(ready, candidate, answer, written)
            except AgentOSError as error:
                self._failed(ready, candidate, spending, trail, error)
                if ready.caller.gone or not may_fall_back(error):
                    raise
                failure = error
                continue
            except BaseException:
                # Nobody learns what became of it.
                spending.assume(_lost(ready, candidate), _served(candidate))
                raise
            self.paid(candidate, spending, trail, usage, answer)
            if slices is not None:
                trail.limited_by = slices.limited_by
            return answer
        raise failure or self._router.all_failing(ready.candidates)

    def calling(self, ready: Ready, trail: Trail, candidate: Candidate) -> Calling:
        """A block around a call that is answered as a whole."""
        return calling(self._router, trail, ready, candidate, streamed=False)

    def used(
        self, ready: Ready, candidate: Candidate, answer: dict[str, Json], written: Callable[[dict[str, Json]], int]
    ) -> Usage:
        """What a whole answer has cost."""
        reported = answer.get("usage")
        # Where the backend has counted what it wrote, nobody else needs to.
        counted = reported is not None and reported.get("completion_tokens") is not None
        return usage_of(
            reported,
            prompt_bytes=ready.sent_bytes,
            content_bytes=0 if counted else written(answer),
            price=candidate.card.price,
        )

    def paid(self, candidate: Candidate, spending: Held, trail: Trail, usage: Usage, answer: dict[str, Json]) -> None:
        spending.add(usage, _in_kinds(_served(candidate), answer.get("usage")))
        self._tell.attempted(candidate, trail.paid(usage))

    async def streamed(
        self, ready: Ready, spending: Held, trail: Trail, model: str, slices: Slices, *, show: Show
    ) -> StreamShaper:
        """Shows the pieces of the first answer that begins. Once content was released there is no falling back."""
        failure: AgentOSError | None = None
        for candidate in self._router.tries(ready.candidates):
            shaper = StreamShaper(model)
            may_cut = cuttable(candidate)
            max_tokens = await self._allowed(ready, candidate, spending, slices, failure, in_slices=may_cut)
            spending.assume(_lost(ready, candidate), _served(candidate))
            ready.answer.served_by(candidate)
            begun = False
            try:
                with calling(self._router, trail, ready, candidate, streamed=True) as attempt:
                    chunks = candidate.backend.stream(candidate.card.upstream, ready.body, max_tokens)
                    try:
                        async for come in chunks:
                            pieces = shaper.take(come)
                            enough = slices.covers(*shaper.written) or await slices.covered(*shaper.written)
                            if pieces:
                                begun = True
                                trail.first_content()
                                attempt.answered()
                                await show(pieces)
                            unseen = may_cut and ready.answer.ended.issuperset(range(ready.ask.choices))
                            if (unseen or not enough) and shaper.open:
                                # Closing it ends the bill: before more is written than is held, or than is shown.
                                shaper.cut()
                                break
                    finally:
                        await chunks.aclose()
                    # Here, because an answer that only looks whole is a failure of its backend.
                    shaper.complete()
            except AgentOSError as error:
                if begun or shaper.reported or shaper.content_bytes:
                    # Also of what was gathered and never released, such as half a tool call.
                    self._streamed_usage(ready, candidate, spending, trail, shaper)
                else:
                    self._failed(ready, candidate, spending, trail, error)
                if begun or ready.caller.gone or not may_fall_back(error):
                    raise
                failure = error
                continue
            except BaseException:
                # The client is gone, or time is up. What was relayed is owed.
                self._streamed_usage(ready, candidate, spending, trail, shaper)
                raise
            self._streamed_usage(ready, candidate, spending, trail, shaper)
            trail.limited_by = slices.limited_by
            return shaper
        raise failure or self._router.all_failing(ready.candidates)

    def slices(self, ready: Ready, spending: Held) -> Slices:
        """What the answer may take of the budget as it goes; to be entered where it is streamed."""
        return Slices(
            spending,
            prompt_bound=ready.ask.prompt_bound,
            choices=ready.ask.choices,
            slice_tokens=self._slice_tokens,
            monotonic=self._monotonic,
        )

    async def _allowed(
        self,
        ready: Ready,
        candidate: Candidate,
        spending: Held,
        slices: Slices,
        failure: AgentOSError | None,
        *,
        in_slices: bool,
    ) -> int:
        """The `max_tokens` for the next attempt; without room for one it stays at the failure of the one before."""
        price = candidate.card.price if ready.plan.money else None
        limit = most(ready, candidate)
        try:
            return await slices.begin(limit, in_slices=in_slices, spent=spending.used, price=price)
        except AgentOSError as refused:
            self._router.left(candidate)
            raise failure or refused from None

    def _streamed_usage(
        self, ready: Ready, candidate: Candidate, spending: Held, trail: Trail, shaper: StreamShaper
    ) -> None:
        usage = usage_of(
            shaper.reported,
            prompt_bytes=ready.sent_bytes,
            content_bytes=shaper.content_bytes,
            price=candidate.card.price,
        )
        spending.add(usage, _in_kinds(_served(candidate), shaper.reported))
        self._tell.attempted(candidate, trail.paid(usage))

    def _failed(self, ready: Ready, candidate: Candidate, spending: Held, trail: Trail, error: AgentOSError) -> None:
        """An attempt that gave nothing is free, unless the backend may have worked all the same."""
        usage = _lost(ready, candidate) if error.details.get("outcome") == "unknown" else Usage()
        spending.add(usage, _served(candidate))
        self._tell.attempted(candidate, trail.paid(usage))


def most(ready: Ready, candidate: Candidate) -> int:
    """What it may write per choice, as far as it can."""
    most = ready.ask.max_tokens
    return most if candidate.card.max_tokens is None else min(most, candidate.card.max_tokens)


def _served(candidate: Candidate) -> Served:
    price = candidate.card.price
    return _by(candidate.card.id, candidate.backend.name, "" if price is None else price.version)


def _in_kinds(served: Served, reported: dict[str, Json] | None) -> Served:
    kinds = kinds_of(reported)
    if kinds is NO_KINDS:
        return served
    return replace(served, cache_read=kinds.cache_read, cache_write=kinds.cache_write, reasoning=kinds.reasoning)


@lru_cache(maxsize=1_024)
def _by(model: str, backend: str, price: str) -> Served:
    """The same for most attempts."""
    return Served(model=model, backend=backend, price=price)


def _lost(ready: Ready, candidate: Candidate) -> Usage:
    """What a call is taken to have cost of which nothing came back."""
    tokens, price = estimated_tokens(ready.sent_bytes), candidate.card.price
    cost = 0 if price is None else price.cost_nanousd(tokens, 0)
    return Usage(prompt_tokens=tokens, cost_nanousd=cost, estimated=True)
