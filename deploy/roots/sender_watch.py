"""A watch over one sender: bytes that are due must come at a least rate."""

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class SenderWatch:
    """Calls `too_slow` when a window went by in which bytes were due, we read, and fewer came than must.

    Windows follow one another for as long as bytes are due. The timer is armed at most once in a window, not with every
    request: most requests are complete long before anybody looks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        too_slow: Callable[[], None],
        *,
        window_s: float,
        window_bytes: int,
    ) -> None:
        self._loop = loop
        self._too_slow = too_slow
        self._window_s = window_s
        self._window_bytes = window_bytes
        self.opened: float | None = None
        """When this window began; None while nothing is due."""
        self._received = 0
        self._held = False
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Bytes are due, in a window that begins now."""
        self.opened = self._loop.time()
        self._received = 0
        if self._timer is None and not self._held:
            self._timer = self._loop.call_later(self._window_s, self._look)

    def received(self, count: int) -> None:
        self._received += count

    def rest(self) -> None:
        """Nothing is due until `expect`."""
        self.opened = None

    def hold(self) -> None:
        """It is we who do not read: time doesn't count until `release`."""
        self._held = True

    def release(self) -> None:
        self._held = False
        if self.opened is not None:
            self.expect()

    def end(self) -> None:
        self.rest()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self.opened is None or self._held:
            return
        left = self.opened + self._window_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._received >= self._window_bytes:
            self.expect()
        else:
            self.rest()
            self._too_slow()


class WatchedFlow(FlowControl):
    """uvicorn's flow control; tells the watch when it is we who do not read."""

    def __init__(self, transport: asyncio.Transport, watch: SenderWatch) -> None:
        super().__init__(transport)
        self._watch = watch

    def pause_reading(self) -> None:
        super().pause_reading()
        self._watch.hold()

    def resume_reading(self) -> None:
        if self.read_paused:
            super().resume_reading()
            self._watch.release()
