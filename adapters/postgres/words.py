"""What a text and a JSON value say, as words: the unit of memory search."""

import re
from collections.abc import Iterator
from typing import Final

from ports.messages import Json

_WORD: Final = re.compile(r"\w+")

# An index entry has to fit into a third of a page. Longer words are told apart by their beginnings.
MAX_WORD_CHARS: Final = 64


def words(text: str) -> frozenset[str]:
    return frozenset(word[:MAX_WORD_CHARS] for word in _WORD.findall(text.casefold()))


def words_in(value: Json) -> frozenset[str]:
    """The words of every text inside a JSON value; members' names are not content."""
    return frozenset().union(*(words(text) for text in _texts_in(value)))


def _texts_in(value: Json) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)
    elif isinstance(value, str):
        yield value
