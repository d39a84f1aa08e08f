"""The secrets that backends are opened with, as they were last read: reading waits for a store, opening does not."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from ports.errors import AgentOSError, InvalidArgument
from ports.secrets import Secret

Read: TypeAlias = Callable[[str], Awaitable[Secret]]
"""What a reference stands for now. Raises `AgentOSError`."""


class KnownSecrets:
    """For one event loop. Knows what the last `learn` was asked for, and nothing else."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[str, Secret | AgentOSError] = {}

    async def learn(self, references: Iterable[str]) -> tuple[object, ...]:
        """Read them all. Equal results mean that nothing changed. One that can't be read is refused when it is used."""
        asked = tuple(dict.fromkeys(references))
        found = await asyncio.gather(*(self._one(reference) for reference in asked))
        self._known = dict(zip(asked, found, strict=True))
        return tuple(
            (reference, one.version if isinstance(one, Secret) else (one.code, one.message))
            for reference, one in self._known.items()
        )

    async def _one(self, reference: str) -> Secret | AgentOSError:
        try:
            return await self._read(reference)
        except AgentOSError as error:
            return error

    def __call__(self, reference: str) -> str:
        """Raises `InvalidArgument` for one that could not be read, or was not asked for."""
        found = self._known.get(reference)
        if isinstance(found, Secret):
            return found.reveal()
        if found is None:
            raise InvalidArgument("a secret was to be used that nobody read; this is a bug")
        raise InvalidArgument(found.message)
