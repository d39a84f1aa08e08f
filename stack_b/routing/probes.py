"""Backends are asked how they are, so that no client's call has to find out that one is away, or that it is back.

Who was heard from lately is not asked: calls say more. A probe is a listing of models, which costs nothing; one that is
answered is no proof that calls will be, so that after it the breaker is half open, and a call decides.
"""

from datetime import timedelta
from typing import Final

import anyio

from ports.clock import Clock
from ports.errors import AgentOSError
from stack_b.backends.catalog import Catalog
from stack_b.backends.protocol import Probed
from stack_b.routing.router import Router

EVERY: Final = timedelta(seconds=10)
IN_A_ROW: Final = 2
"""Probes without an answer after which a backend is left alone: one may be lost."""
PAUSE_S: Final = 2.5 * EVERY.total_seconds()
"""How long it is then left alone: until the probe after the next, if that is not answered either."""


class Prober:
    """Of one process. Only backends that serve something are asked."""

    def __init__(self, catalog: Catalog, router: Router, clock: Clock) -> None:
        self._catalog = catalog
        self._router = router
        self._clock = clock
        self._unanswered: dict[str, int] = {}

    async def keep_probing(self) -> None:
        """For ever; runs as a task of the app."""
        while True:
            await self._clock.sleep(EVERY)
            await self.probe()

    async def probe(self) -> None:
        """Ask once, all at the same time."""
        serving = {candidate.backend.name: candidate.backend for candidate in self._catalog.served()}
        # What left is forgotten.
        self._unanswered = {name: times for name, times in self._unanswered.items() if name in serving}
        async with anyio.create_task_group() as group:
            for name, backend in serving.items():
                if isinstance(backend, Probed) and not self._heard_lately(name):
                    group.start_soon(self._ask, name, backend)

    async def _ask(self, name: str, backend: Probed) -> None:
        try:
            await backend.probe()
        except AgentOSError:
            self._unanswered[name] = self._unanswered.get(name, 0) + 1
            if self._unanswered[name] >= IN_A_ROW:
                self._router.probed(name, well=False, pause=PAUSE_S)
        else:
            self._unanswered.pop(name, None)
            self._router.probed(name, well=True, pause=0.0)

    def _heard_lately(self, name: str) -> bool:
        heard = self._router.heard(name)
        return heard is not None and self._clock.monotonic() - heard < EVERY.total_seconds()
