"""Who waits for an answer, and what it means when they no longer do."""

from msgspec import Struct

from stack_b.backends.protocol import Backend
from stack_b.interrupt import Interrupt


class Gone(Exception):
    """They left, and nothing more is done for them."""


class Caller(Struct, eq=False):
    """One request's. When they leave, the call under way ends at once, unless it would be billed to its end all the same:
    then it is read to its end, so that what is settled is what was billed."""

    gone: bool = False
    _under_way: Backend | None = None
    _streamed: bool = False
    _interrupt: Interrupt | None = None

    @property
    def bound(self) -> bool:
        """The call under way goes on without them."""
        backend = self._under_way
        return backend is not None and not backend.cancel_stops_billing(streamed=self._streamed)

    def waits_for(self, backend: Backend | None, *, streamed: bool = False) -> None:
        """A call of it begins; None: it is over."""
        self._under_way, self._streamed = backend, streamed

    def leave(self) -> None:
        self.gone = True
        if self.bound:
            return
        if self._interrupt is not None:
            self._interrupt.fire(Gone)

    def ends_by(self, interrupt: Interrupt | None) -> None:
        """What is done for them now is in this block, or in none."""
        self._interrupt = interrupt
        if interrupt is not None and self.gone and not self.bound:
            interrupt.fire(Gone)
