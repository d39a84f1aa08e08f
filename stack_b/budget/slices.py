"""How much a backend may write, by what is held: all of it at first, or a slice that grows while the answer is written.

Where closing a stream stops its bill, a slice of output is held and the hold is extended ahead of need; refused, the stream
is closed before it has written more than is held. Elsewhere, and for whole answers, all that may be written is held before.
What was written is counted by its bytes, and one for each chunk: a byte-level tokenizer makes no more tokens of it. So what
is on its way when a stream is closed is covered too, about three tokens for each that was seen.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from ports.budget import NOTHING, Amount
from ports.errors import ResourceExhausted, Unavailable
from stack_b.backends.catalog import Candidate
from stack_b.backends.protocol import Price
from stack_b.budget.held import Held

MOST_SLICES: Final = 16
"""In one extension: each asks for twice as much as the one before, up to so many slices."""
AHEAD: Final = 2
"""More is asked for when no more than this part of a slice, a half, is left."""
ASK_AGAIN_S: Final = 0.25
"""After a refusal, while there is something left."""


def cuttable(candidate: Candidate) -> bool:
    """Whether a stream of it may be held in slices: closing it stops the bill, and all that is billed is seen as it comes.

    Where a model reasons unseen, as it may at providers that stop streams only, what was written is not what is billed.
    """
    backend, hidden = candidate.backend, candidate.card.hidden_reasoning
    if hidden is None:
        hidden = not backend.cancel_stops_billing(streamed=False)
    return not hidden and backend.cancel_stops_billing(streamed=True)


def cost_of(price: Price | None, prompt_tokens: int, output_tokens: int) -> Amount:
    """What so much may cost at most. `price` None: no budget of money is concerned."""
    nanousd = price.most_nanousd(prompt_tokens, output_tokens) if price is not None else 0
    return Amount(tokens=prompt_tokens + output_tokens, nanousd=nanousd)


def output_within(room: Amount, price: Price | None, prompt_tokens: int) -> int:
    """The output tokens that fit into `room` beside the prompt; below nothing where not even that does."""
    by_tokens = room.tokens - prompt_tokens
    if price is None:
        return by_tokens
    million = 1_000_000
    left = room.nanousd * million - prompt_tokens * price.most_nanousd(million, 0)
    each = price.most_nanousd(0, million)
    if each == 0:
        return by_tokens if left >= 0 else -1
    return min(by_tokens, left // each)


class Slices:
    """What one request's backends may write, attempt after attempt."""

    def __init__(
        self,
        held: Held,
        *,
        prompt_bound: int,
        choices: int,
        slice_tokens: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._held = held
        self._prompt = prompt_bound
        self._choices = choices
        self._slice = slice_tokens * choices
        self._price: Price | None = None
        self._monotonic = monotonic
        self._spent = NOTHING
        self._output = 0
        """Tokens that this attempt may write by what is held."""
        self._most = 0
        """Tokens that it may write if all is granted."""
        self._chunks = 0
        self._step = self._slice
        self._growing: asyncio.Task[None] | None = None
        self._ask_again = 0.0
        self.limited_by: str = ""
        """The budget that has ended the answer early, or has let the backend write less than was asked for."""
        self._refused_by: str = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing more is asked for. What is granted all the same goes back."""
        if self._growing is not None:
            self._growing.cancel()
            await self._settled()

    async def begin(self, max_tokens: int, *, in_slices: bool, spent: Amount, price: Price | None) -> int:
        """Before an attempt: the `max_tokens` to tell the backend, at most those given.

        `spent` was used by the attempts before. `in_slices`: it can be ended early, and the bill with it. `price`: where a
        budget of money is held; else None.

        Raises:
            ResourceExhausted, Unavailable: nothing can be held that such an attempt could use.
        """
        await self._settled()
        self._spent, self._chunks, self._step, self._price = spent, 0, self._slice, price
        self.limited_by = ""
        self._most = self._choices * max_tokens
        self._output = output_within(self._room(), self._price, self._prompt)
        wanted = min(self._most, self._slice) if in_slices else self._most
        if self._output < wanted:
            try:
                await self._held.grow(self._missing(wanted))
            except ResourceExhausted as refused:
                if self._output < self._choices:
                    raise
                self._refused_by = str(refused.details.get("budget", ""))
            self._output = output_within(self._room(), self._price, self._prompt)
        if in_slices:
            return max_tokens
        told = min(max_tokens, self._output // self._choices)
        if told < max_tokens:
            # All that it may write is held already.
            self._most, self.limited_by = self._output, self._refused_by
        return told

    def covers(self, content_bytes: int, reported: int) -> bool:
        """Whether a chunk that just came leaves enough: called for each. `reported` is the backend's own count so far."""
        self._chunks += 1
        return self._output >= self._most or self._written(content_bytes, reported) + self._ahead <= self._output

    async def covered(self, content_bytes: int, reported: int) -> bool:
        """The same, where `covers` is not: asks for more, waits only if the last of it is used up.

        Raises:
            Unavailable: more is needed, and the ledger does not answer.
        """
        written = self._written(content_bytes, reported)
        needed = written >= self._output
        if self._growing is not None and self._growing.done():
            await self._grown(needed=False)
            needed = written >= self._output
        if self._growing is None and (needed or self._monotonic() >= self._ask_again):
            self._growing = asyncio.create_task(self._grow(written))
        if needed and self._growing is not None:
            await self._grown(needed=True)
        if written < self._output or self._output >= self._most:
            return True
        self.limited_by = self._refused_by
        return False

    @property
    def _ahead(self) -> int:
        return max(1, self._slice // AHEAD)

    def _written(self, content_bytes: int, reported: int) -> int:
        return max(content_bytes + self._chunks, reported)

    def _room(self) -> Amount:
        """What is held for this attempt."""
        return self._held.amount.minus(self._spent)

    def _missing(self, output: int) -> Amount:
        """What must be held beside what is, to have `output` tokens."""
        missing = cost_of(self._price, self._prompt, output).minus(self._room())
        return Amount(tokens=max(0, missing.tokens), nanousd=max(0, missing.nanousd))

    async def _grow(self, written: int) -> None:
        """By a step; by a slice where that is refused; and always by what a large chunk has written at once."""
        least = max(self._slice, written + self._ahead - self._output)
        step = max(self._step, least)
        try:
            await self._extend(step)
        except ResourceExhausted:
            if step == least:
                raise
            self._step = self._slice
            await self._extend(least)
        else:
            self._step = min(self._step * 2, MOST_SLICES * self._slice)

    async def _extend(self, output: int) -> None:
        output = min(output, self._most - self._output)
        await self._held.grow(self._missing(self._output + output))
        self._output += output

    async def _grown(self, *, needed: bool) -> None:
        """Wait for the extension under way."""
        growing, self._growing = self._growing, None
        assert growing is not None, "asked for just before"
        try:
            await growing
        except Unavailable:
            self._ask_again = self._monotonic() + ASK_AGAIN_S
            if needed:
                raise
        except ResourceExhausted as refused:
            self._step = self._slice
            self._ask_again = self._monotonic() + ASK_AGAIN_S
            self._refused_by = str(refused.details.get("budget", ""))

    async def _settled(self) -> None:
        growing, self._growing = self._growing, None
        if growing is not None:
            with suppress(asyncio.CancelledError, ResourceExhausted, Unavailable):
                await growing
