"""A plain request while its backend answers, where it is no coroutine: what one would go on with."""

from collections.abc import Awaitable
from typing import Protocol

from msgspec import Struct

from ports.messages import Json
from stack_b.backends.connection import Answer
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.blocks import Reserved
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


class Sent(Struct, kw_only=True, eq=False):
    """Its budget is held, its first call is under way, and its time runs: each of these blocks was entered."""

    call: ChatCall
    trail: Trail
    ready: Ready
    reserved: Reserved
    calling: Calling
    interrupt: Interrupt
    backend: OpenAiCompatible
    answer: Answer
    """Of its first call."""
    failed: BaseException | None = None
    """What went wrong here after its answer had come."""
    paid: bool = False
    """Its answer, though it may not be settled."""
    _gone_on: bool = False

    def answered(self) -> dict[str, Json] | None:
        """The whole answer, where it is one."""
        return self.backend.at_hand(self.answer)

    def release(self) -> None:
        self.answer.release()

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
        return self.backend.going_on(self.answer)
