"""How many runs a worker executes at once, and for whom."""

from typing import Final

import anyio

RESERVED_EVERY: Final = 16
"""One slot in so many, and at least one of `RESERVED_FROM`, is kept for tenants that have nothing under way: when another
tenant's backlog has taken all others, the first run of such a tenant starts at once in what is kept. A second such tenant
of the same worker may have to wait."""
RESERVED_FROM: Final = 8
"""Slots from which on one is kept: of fewer it would be too large a part."""


def reserve_of(concurrency: int) -> int:
    """How many of a worker's slots are kept."""
    return 0 if concurrency < RESERVED_FROM else max(1, concurrency // RESERVED_EVERY)


class Slots:
    """So many runs at once."""

    def __init__(self, many: int) -> None:
        self._many = many
        self.places = anyio.Semaphore(many, fast_acquire=True)
        self.in_hand = 0
        """Hints and orphans being claimed or executed, or waiting: the queue and the sweep may take too many."""

    @property
    def crowded(self) -> bool:
        """Whether half of them are taken: then whoever looks for more work may be a while."""
        return 2 * self.in_hand >= self._many

    @property
    def free(self) -> int:
        return max(0, self._many - self.in_hand)
