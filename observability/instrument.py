"""Wraps a port, whichever it is: every call is measured, and nothing outside the error tree gets through.

Used by the composition roots, so that adapters and the code inside run the same without it.
"""

import logging
import time
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final, TypeVar, cast

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import AgentOSError, Internal

PortT = TypeVar("PortT")

OK: Final = "ok"
CANCELLED: Final = "cancelled"

_logger: Final = logging.getLogger("agentos.port")


class PortCall(Struct, frozen=True, kw_only=True, gc=False):
    """One finished call. `code` is `ok`, `cancelled`, or the code of the error it raised."""

    port: str
    method: str
    code: str
    seconds: float
    auth: AuthContext | None
    """The caller, where the call names one."""


OnCall = Callable[[PortCall], None]


def instrument(
    port_name: str, port: PortT, on_call: OnCall, *, monotonic: Callable[[], float] = time.perf_counter
) -> PortT:
    """`port`, with every public method measured and its errors kept within the tree.

    Coroutines, async iterators and plain methods all work; attributes that are not callable are passed through. An
    iterator is measured from its first step to its end. An `on_call` that raises is logged and forgotten.
    """
    return cast("PortT", _Instrumented(port_name, port, on_call, monotonic))


class _Instrumented:
    """Stands in for the port; see `instrument`."""

    def __init__(self, port_name: str, port: Any, on_call: OnCall, monotonic: Callable[[], float]) -> None:
        # `Any`: it is a port of any kind, which is the point of this module.
        self._port_name = port_name
        self._port = port
        self._on_call = on_call
        self._monotonic = monotonic

    def __getattr__(self, name: str) -> Any:
        # Reached for names this class lacks only: those of the port. Methods are kept, so the next access is direct.
        value = getattr(self._port, name)
        if name.startswith("_") or not callable(value):
            return value
        measured = self._measured(name, value)
        self.__dict__[name] = measured
        return measured

    def __repr__(self) -> str:
        return f"instrumented {self._port!r}"

    def _measured(self, method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(call):

            @wraps(call)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                started = self._monotonic()
                try:
                    result = await call(*args, **kwargs)
                except BaseException:
                    # The judgement of what is rare is the watch's.
                    with _Watch(self, method, args, started):
                        raise
                auth = args[0] if args and isinstance(args[0], AuthContext) else None
                self.report(method, OK, started, auth)
                return result

            return awaited

        @wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            started = self._monotonic()
            try:
                result = call(*args, **kwargs)
            except BaseException:
                with _Watch(self, method, args, started):
                    raise
            if result is not None and not isinstance(result, Struct):
                # It may go on after returning.
                if isawaitable(result):
                    return _awaited(result, _Watch(self, method, args))
                if hasattr(result, "__aiter__"):
                    return _iterated(result, _Watch(self, method, args))
            self.report(method, OK, started, _caller(args))
            return result

        return measured

    def report(self, method: str, code: str, started: float, auth: AuthContext | None) -> None:
        try:
            seconds = self._monotonic() - started
            self._on_call(PortCall(port=self._port_name, method=method, code=code, seconds=seconds, auth=auth))
        except Exception as error:  # noqa: BLE001  # telling fails soft: the call has succeeded or failed already
            _logger.warning("telemetry.failed", extra={"port": self._port_name, "error_type": type(error).__name__})

    def now(self) -> float:
        return self._monotonic()

    @property
    def port_name(self) -> str:
        return self._port_name


class _Watch:
    """Times one call and judges how it ended."""

    __slots__ = ("_auth", "_begun", "_method", "_owner", "_started")

    def __init__(self, owner: _Instrumented, method: str, args: tuple[Any, ...], started: float | None = None) -> None:
        self._owner = owner
        self._method = method
        self._auth = _caller(args)
        self._begun = started
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._owner.now() if self._begun is None else self._begun

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        match error:
            case None | GeneratorExit():
                self._report(OK)
            case AgentOSError():
                self._report(error.code)
            case CancelledError():
                self._report(CANCELLED)
            case Exception():
                self._report(Internal.default_code)
                kind = type(error).__name__
                raise Internal(
                    f"{self._owner.port_name}.{self._method} raised {kind}, which no port may raise"
                ) from error
            case _:
                self._report(Internal.default_code)

    def _report(self, code: str) -> None:
        self._owner.report(self._method, code, self._started, self._auth)


def _caller(args: tuple[Any, ...]) -> AuthContext | None:
    return args[0] if args and isinstance(args[0], AuthContext) else None


async def _awaited(result: Awaitable[Any], watch: _Watch) -> Any:
    with watch:
        return await result


async def _iterated(result: AsyncIterator[Any], watch: _Watch) -> AsyncIterator[Any]:
    with watch:
        try:
            async for item in result:
                yield item
        finally:
            # Generators can be closed; an iterator of another kind need not be.
            close = getattr(result, "aclose", None)
            if close is not None:
                await close()
