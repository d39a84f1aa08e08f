"""Ports that fail on request: before the effect, after it, twice, or late.

    faults = Faults()
    state = faults.around(state)
    faults.inject("append", "after")     # the next append is written, and its caller told it may not have been

The caller sees `Unavailable`, as when a connection breaks: whether the other side acted is unknown to it.
"""

import inspect
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypeVar, cast

import anyio

from ports.errors import Unavailable

Kind: TypeAlias = Literal["before", "after", "twice", "late"]
PortT = TypeVar("PortT")


class Faults:
    """What shall go wrong, call by call. Each injected fault is used once, in order."""

    def __init__(self) -> None:
        self._planned: defaultdict[str, deque[Kind]] = defaultdict(deque)
        self._gate = anyio.Event()
        self._held = anyio.Event()

    def inject(self, method: str, kind: Kind, *, times: int = 1) -> None:
        """The next `times` calls of `method`: fail `before` or `after` the effect, act `twice`, or answer `late`."""
        self._planned[method].extend([kind] * times)

    def around(self, port: PortT) -> PortT:
        """`port`, with these faults."""
        return cast(PortT, _Faulty(port, self))

    async def held(self) -> None:
        """Wait until a `late` call has had its effect and waits to answer."""
        await self._held.wait()

    def let_go(self) -> None:
        """Let every `late` call answer."""
        self._gate.set()

    def take(self, method: str) -> Kind | None:
        planned = self._planned[method]
        return planned.popleft() if planned else None

    async def hold(self) -> None:
        self._held.set()
        await self._gate.wait()


class _Faulty:
    def __init__(self, port: object, faults: Faults) -> None:
        self._port = port
        self._faults = faults

    # Any: one wrapper stands in for every port; `around` gives callers the port's own type back.
    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if inspect.iscoroutinefunction(found):
            return self._call(name, found)
        if inspect.isasyncgenfunction(found):
            return self._stream(name, found)
        return found

    def _call(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            kind = self._faults.take(name)
            if kind == "before":
                raise Unavailable(f"{name}: injected before the effect")
            answer = await method(*args, **kwargs)
            if kind == "after":
                raise Unavailable(f"{name}: injected after the effect")
            if kind == "late":
                await self._faults.hold()
            return await method(*args, **kwargs) if kind == "twice" else answer

        return call

    def _stream(self, name: str, method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            kind = self._faults.take(name)
            if kind == "before":
                raise Unavailable(f"{name}: injected before the first item")
            async for item in method(*args, **kwargs):
                if kind == "late":
                    await self._faults.hold()
                yield item
            if kind == "after":
                raise Unavailable(f"{name}: injected after the last item")

        return stream
