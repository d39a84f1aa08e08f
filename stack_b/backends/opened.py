"""The backends in use, while the configuration that names them changes.

A backend about which nothing changed stays as it is, connections and all. One that changed or left gets no new requests; it
is closed when the longest request that it may still be answering is over.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import msgspec

from ports.clock import Clock
from ports.provider import ProviderPort
from stack_b.backends.protocol import Backend, OpenBackend
from stack_b.backends.settings import BackendSettings, open_backend

_Key = tuple[bytes, str]
"""What a backend was opened by: its settings, and its secret as it was."""

_NO_SECRET: Final = ""


class OpenedBackends:
    """For one event loop. Closes whatever is still open at the end of its block."""

    def __init__(
        self,
        clock: Clock,
        *,
        secret: Callable[[str], str],
        demo: bool,
        lingering: timedelta,
        provider: ProviderPort | None = None,
    ) -> None:
        """`lingering` is how long a request may last."""
        self._clock = clock
        self._secret = secret
        self._demo = demo
        self._provider = provider
        self._lingering = lingering
        self._opened: dict[_Key, OpenBackend] = {}
        self._leaving: dict[asyncio.Task[None], OpenBackend] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving)
        for backend in (*leaving.values(), *self._opened.values()):
            await backend.aclose()

    def use(self, settings: Sequence[BackendSettings]) -> tuple[Backend, ...]:
        """Those of `settings`, in their order. Contacts none of them.

        Raises:
            InvalidArgument: as `open_backend`; then everything stays as it was.
        """
        before = self._opened
        now: dict[_Key, OpenBackend] = {}
        for one in settings:
            key = (msgspec.json.encode(one), self._secret(one.api_key) if one.api_key else _NO_SECRET)
            now[key] = before.get(key) or open_backend(
                one, self._clock, secret=self._secret, demo=self._demo, provider=self._provider
            )
        self._opened = now
        for key, backend in before.items():
            if key not in now:
                task = asyncio.create_task(self._close_later(backend))
                self._leaving[task] = backend
                task.add_done_callback(self._leaving.pop)
        return tuple(now.values())

    async def _close_later(self, backend: OpenBackend) -> None:
        await self._clock.sleep(self._lingering)
        await backend.aclose()
