"""What an answer's stream is made of on its way through the gateway.

Most chunks differ from the one before in their text and in nothing else. Such a run travels as one of them and the texts of
all, so that what is done for each chunk is done once for the run.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from msgspec import Struct

from ports.messages import Json


class Run(Struct, frozen=True):
    """Chunks one after the other, each with one delta that has a text (`content`) and nothing else."""

    chunk: dict[str, Json]
    """What each of them is, but for the text. The same object for as long as that is so: it may be remembered by."""
    texts: list[str]
    size: int
    """Of the texts, in bytes."""

    def with_text(self, text: str) -> dict[str, Json]:
        """A chunk of it."""
        [choice] = self.chunk["choices"]
        return {**self.chunk, "choices": [{**choice, "delta": {"content": text}}]}


Piece: TypeAlias = dict[str, Json] | Run


class Closing(list[dict[str, Json]]):
    """Pieces with which the answer is over."""


def size_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def index_of(chunk: dict[str, Json]) -> int:
    """Of a chunk's one choice."""
    return chunk["choices"][0].get("index") or 0


def written_out(pieces: Iterable[Piece]) -> Iterator[dict[str, Json]]:
    """Chunk by chunk."""
    for piece in pieces:
        if isinstance(piece, Run):
            yield from map(piece.with_text, piece.texts)
        else:
            yield piece
