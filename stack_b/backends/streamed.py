"""One streamed answer of a backend, read as it comes."""

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Self

from ports.errors import Unavailable
from stack_b.backends.chunk_reader import ChunkReader
from stack_b.backends.connection import Answer
from stack_b.chunks import Piece

TOO_LARGE: Final = "its answer is too large"
BROKE_OFF: Final = "it broke off in the middle of its answer"


class Streamed:
    """Satisfies `stack_b.backends.protocol.Pieces`. Nobody is asked before the first pieces are.

    No generator: the event loop keeps account of each of those, which costs as much as reading a short answer.
    """

    __slots__ = ("_answer", "_ask", "_ended", "_failed", "_most_bytes", "_over", "_piece", "_reader", "_size")

    def __init__(
        self,
        reader: ChunkReader,
        ask: Callable[[], Awaitable[Answer]],
        piece: Callable[[Answer], Awaitable[bytes]],
        failed: Callable[[str], Unavailable],
        *,
        most_bytes: int,
    ) -> None:
        """`failed`: with what a backend has done wrong."""
        self._reader = reader
        self._ask = ask
        self._piece = piece
        self._failed = failed
        self._most_bytes = most_bytes
        self._answer: Answer | None = None
        self._size = 0
        self._ended = False
        """Nothing more comes."""
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Piece]:
        if self._over:
            raise StopAsyncIteration
        try:
            answer = self._answer
            if answer is None:
                answer = self._answer = await self._ask()
            reader = self._reader
            while not (reader.done or self._ended) and reader.failure is None:
                data = await self._piece(answer)
                self._count(data)
                if pieces := reader.feed(data) if data else reader.close():
                    return pieces
            self._finish(answer)
        except BaseException:
            self._release()
            raise

    async def aclose(self) -> None:
        """Ends the call, where it isn't over."""
        self._release()

    def _count(self, data: bytes) -> None:
        self._ended = not data
        self._size += len(data)
        if self._size > self._most_bytes:
            raise self._failed(TOO_LARGE)

    def _finish(self, answer: Answer) -> NoReturn:
        """There are no more pieces."""
        if self._reader.failure is not None:
            raise self._reader.failure
        if not self._reader.done:
            raise self._failed(BROKE_OFF)
        if not self._ended:
            answer.leave()
        raise StopAsyncIteration

    def _release(self) -> None:
        if not self._over:
            self._over = True
            if self._answer is not None:
                self._answer.release()
