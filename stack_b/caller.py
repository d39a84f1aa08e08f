"""Who waits for an answer, and what it means when they no longer do."""

from collections.abc import Callable
from types import TracebackType

from stack_b.backends.protocol import Backend


class Caller:
    """One request's. When they leave, the call under way ends at once, unless it would be billed to its end all the same:
    then it is read to its end, so that what is settled is what was billed."""

    def __init__(self) -> None:
        self.gone = False
        self.bound = False
        """The call under way goes on without them."""
        self.on_leaving: Callable[[], None] = lambda: None
        """Ends everything that is done for them."""

    def leave(self) -> None:
        self.gone = True
        if not self.bound:
            self.on_leaving()

    def asking(self, backend: Backend, *, streamed: bool) -> "_Asking":
        """Around one call of a backend."""
        return _Asking(self, bound=not backend.cancel_stops_billing(streamed=streamed))


class _Asking:
    __slots__ = ("_bound", "_caller")

    def __init__(self, caller: Caller, *, bound: bool) -> None:
        self._caller = caller
        self._bound = bound

    def __enter__(self) -> None:
        self._caller.bound = self._bound

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._caller.bound = False
