"""A plain request while its backend answers, where it is no coroutine: what one would go on with."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from ports.messages import Json
from stack_b.backends.connection import Answer, Connection
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.blocks import Reserved
from stack_b.budget.held import Held
from stack_b.calling import Calling
from stack_b.canonical import ChatCall
from stack_b.interrupt import Interrupt, Interrupted
from stack_b.prepare import Ready
from stack_b.receipt import Trail


class Work(Interrupted, Protocol):
    """Who goes on with it, in a callback or in a task."""

    def arrived(self) -> None:
        """All of the answer is here, or none of it will be."""
        ...


class Sent:
    """Its budget is held, its first call is under way, and its time runs: each of these blocks was entered."""

    __slots__ = (
        "_answer",
        "_backend",
        "_gone_on",
        "call",
        "calling",
        "failed",
        "held",
        "interrupt",
        "paid",
        "ready",
        "reserved",
        "trail",
    )

    def __init__(
        self,
        *,
        call: ChatCall,
        trail: Trail,
        ready: Ready,
        reserved: Reserved,
        held: Held,
        calling: Calling,
        interrupt: Interrupt,
    ) -> None:
        self.call = call
        self.trail = trail
        self.ready = ready
        self.reserved = reserved
        self.held = held
        self.calling = calling
        self.interrupt = interrupt
        self.failed: BaseException | None = None
        """What went wrong here after its answer had come."""
        self.paid = False
        """Its answer, though it may not be settled."""
        self._gone_on = False

    def send(
        self, backend: OpenAiCompatible, connection: Connection, max_tokens: int, arrived: Callable[[], None]
    ) -> None:
        self._backend: OpenAiCompatible = backend
        model = self.calling.candidate.card.upstream
        self._answer: Answer = backend.send(connection, model, self.ready.body, max_tokens, arrived)

    def answered(self) -> dict[str, Json] | None:
        """The whole answer, where it is one."""
        return self._backend.at_hand(self._answer)

    def release(self) -> None:
        self._answer.release()

    def raise_if_over(self) -> None:
        """What has failed, where everything was settled before it did."""
        if self.failed is not None and not self.reserved.entered:
            raise self.failed

    def raise_if_paid(self) -> None:
        """What has failed, where nothing is left to pay."""
        if self.failed is not None and self.paid:
            raise self.failed

    def going_on(self) -> Awaitable[dict[str, Json]] | None:
        """Its first call, the first time: later ones are new. Raises what has `failed`."""
        if self._gone_on:
            return None
        self._gone_on = True
        if self.failed is not None:
            self.release()
            raise self.failed
        return self._backend.going_on(self._answer)
