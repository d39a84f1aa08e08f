"""The block around one call of a backend: who waits is bound to it, and what became of it is noted where that counts."""

from types import TracebackType
from typing import Self

from stack_b.backends.catalog import Candidate
from stack_b.caller import Caller
from stack_b.prepare import Ready
from stack_b.receipt import Trail
from stack_b.routing.router import Attempting, Router


class Calling(Attempting, kw_only=True, eq=False):
    """One for the router, the trail and the caller, as every request passes through it."""

    _trail: Trail
    _caller: Caller
    _streamed: bool

    def __enter__(self) -> Self:
        candidate = self._trail.candidate = self.candidate
        self._caller.waits_for(candidate.backend, streamed=self._streamed)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._caller.waits_for(None)
        now = self._router.monotonic()
        self._router.ended(self, error, now)
        self._trail.ended(self.candidate, now - self.began, error)


def calling(router: Router, trail: Trail, ready: Ready, candidate: Candidate, *, streamed: bool) -> Calling:
    return Calling(
        _router=router,
        auth=trail.auth,
        asked=ready.asked,
        candidate=candidate,
        breaker=router.breaker_of(candidate.backend.name),
        began=router.monotonic(),
        _trail=trail,
        _caller=ready.caller,
        _streamed=streamed,
    )
