"""What one request has consumed so far, attempt by attempt."""

from typing import Final

from msgspec import Struct

from ports.budget import Amount
from ports.messages import Usage


class Served(Struct, frozen=True, kw_only=True, gc=False):
    """Who served an attempt, and which of its tokens were of a kind of their own."""

    model: str = ""
    backend: str = ""
    price: str = ""
    """The version of the price."""
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


NOBODY: Final = Served()
NOTHING_USED: Final = Usage()


class Spending:
    """Whatever it is on the way out is settled."""

    # As each one begins.
    _known: tuple[tuple[Usage, Served], ...] = ()
    _assumed = NOTHING_USED
    _assumed_of = NOBODY
    total = NOTHING_USED
    """What is known of and what is assumed."""

    @property
    def used(self) -> Amount:
        total = self.total
        return Amount(tokens=total.total_tokens, nanousd=total.cost_nanousd)

    def assume(self, usage: Usage, of: Served = NOBODY) -> None:
        """A call is about to be made; should nobody learn what became of it, it is taken to have cost this."""
        self._assumed, self._assumed_of = usage, of
        self.total = self._sum() if self._known else usage

    def add(self, usage: Usage, of: Served = NOBODY) -> None:
        """The call's own count, in place of what was assumed."""
        first = not self._known
        self._known = (*self._known, (usage, of))
        self._assumed, self._assumed_of = NOTHING_USED, NOBODY
        self.total = usage if first else self._sum()

    def attempts(self) -> tuple[tuple[Usage, Served], ...]:
        """In their order; those that were free as well."""
        if self._assumed is NOTHING_USED or self._assumed == NOTHING_USED:
            return self._known
        return (*self._known, (self._assumed, self._assumed_of))

    def _sum(self) -> Usage:
        total = self._known[0][0]
        for usage, _ in self._known[1:]:
            total = total.plus(usage)
        return total if self._assumed is NOTHING_USED else total.plus(self._assumed)
