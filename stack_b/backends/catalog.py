"""Which backend serves which models now. Asked for in the background: no request and no readiness waits for a listing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import anyio

from ports.clock import Clock
from ports.errors import AgentOSError
from stack_b.backends.protocol import Backend, ModelCard

REFRESH: Final = timedelta(minutes=5)
RETRY: Final = timedelta(seconds=15)
"""After a round in which a backend did not answer: an ollama that was just started is found within this time."""

logger = logging.getLogger("agentos.gateway")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model at the backend that would serve it."""

    backend: Backend
    card: ModelCard


class Catalog:
    """The order of `backends` is the order of preference for a model that several of them serve."""

    def __init__(self, backends: Sequence[Backend], clock: Clock) -> None:
        self._backends = tuple(backends)
        self._clock = clock
        self._cards: dict[str, tuple[ModelCard, ...]] = {}
        self._served: tuple[Candidate, ...] = ()

    @property
    def backends(self) -> tuple[Backend, ...]:
        return self._backends

    def served(self) -> tuple[Candidate, ...]:
        return self._served

    async def refresh(self) -> bool:
        """Ask every backend what it serves; whether all answered. One that does not answer keeps what it last said."""
        return await self._ask(self._backends, self._cards)

    def _known(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(backend, card) for backend in self._backends for card in self._cards.get(backend.name, ())
        )

    async def _ask(self, backends: Sequence[Backend], cards: dict[str, tuple[ModelCard, ...]]) -> bool:
        answered: list[bool] = []

        async def ask(backend: Backend) -> None:
            try:
                cards[backend.name] = await backend.models()
            except AgentOSError as error:
                if backend.name in cards:
                    logger.warning("backend.silent", extra={"backend": backend.name, "code": error.code})
            else:
                answered.append(True)
                # Known as soon as one has answered: who is slow is not waited for.
                self._served = self._known()

        async with anyio.create_task_group() as group:
            for backend in backends:
                group.start_soon(ask, backend)
        return len(answered) == len(backends)

    async def follow(self, backends: Sequence[Backend]) -> None:
        """From now on these. Those that are new are asked first, so that no model is missing for a moment."""
        # What one of the same name had said holds until it answers.
        cards = {backend.name: self._cards[backend.name] for backend in backends if backend.name in self._cards}
        await self._ask([backend for backend in backends if backend not in self._backends], cards)
        self._backends, self._cards = tuple(backends), cards
        self._served = self._known()

    async def keep_fresh(self) -> None:
        """Refresh for ever; runs as a task of the composition root."""
        while True:
            complete = await self.refresh()
            await self._clock.sleep(REFRESH if complete else RETRY)
