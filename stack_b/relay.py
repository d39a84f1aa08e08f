"""The way of a streamed answer from its backend to where it is shown: looked at first, and gathered where it is kept."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from ports.errors import AgentOSError
from ports.messages import Json
from stack_b.chunks import Piece, written_out
from stack_b.prepare import Ready
from stack_b.receipt import Trail
from stack_b.replay import Gathered

Show: TypeAlias = Callable[[Sequence[Piece]], Awaitable[None]]
"""Where an answer goes, piece by piece; who is slow is waited for."""


class NotShown(Exception):
    """What a backend wrote can't be shown, by no fault of its own: for those between it and the pipeline."""

    def __init__(self, error: AgentOSError) -> None:
        super().__init__(error)
        self.error = error


class Relay:
    """One answer's."""

    __slots__ = ("_answer", "_gathered", "_show", "_trail")

    def __init__(self, ready: Ready, trail: Trail, show: Show) -> None:
        self._answer = ready.answer
        self._trail = trail
        self._show = show
        self._gathered = None if trail.texts is None else Gathered()

    async def take(self, pieces: list[Piece]) -> None:
        """What a backend wrote. Raises `NotShown`."""
        try:
            readable = await self._answer.pieces(pieces)
        except AgentOSError as error:
            raise NotShown(error) from error
        if readable:
            if self._gathered is not None:
                self._gathered.add_all(written_out(readable))
            await self._show(readable)

    async def rest(self) -> None:
        """What was held back until it had ended, also by a failure: what came before that was paid, and may be read."""
        if rest := await self._answer.rest():
            if self._gathered is not None:
                self._gathered.add_all(written_out(rest))
            await self._show(rest)

    async def end(self, chunks: list[dict[str, Json]]) -> None:
        closing = await self._answer.closing(chunks)
        if self._gathered is not None and self._trail.texts is not None:
            self._gathered.add_all(written_out(closing))
            self._trail.texts.answer = self._answer.to_keep(self._gathered.reply()["choices"])
        await self._show(closing)
