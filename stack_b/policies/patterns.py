"""What is looked for in texts, by RE2: in time linear in the text, whatever the pattern and the text. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from ports.errors import InvalidArgument
from stack_b.policies.text import canonical_text
from stack_b.policies.width import width

_MEMORY: Final = 8 * 1024 * 1024
"""Bytes for a pattern and its automaton; a pattern that needs more is refused."""
_SHOWN: Final = 200
MAX_PROGRAM: Final = 5_000
"""Steps of one compiled pattern: its time grows with them where many places look like the beginning of a match."""
_WORD: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def compiled(pattern: str, *, case_sensitive: bool = False) -> Any:  # RE2's own type, which has no name
    """Raises `InvalidArgument` for what RE2 doesn't take."""
    import re2  # noqa: PLC0415 - 4 MB and 20 ms that a gateway without patterns does without

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    options.never_capture = True
    options.case_sensitive = case_sensitive
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise InvalidArgument(f"{pattern[:_SHOWN]!r} is no pattern of RE2's: {_said(error)}") from None


def words(keywords: Sequence[str]) -> list[str]:
    """Patterns for words and phrases as they are in canonical texts."""
    return [_word(keyword) for keyword in keywords]


class Search:
    """Any of some patterns, in a canonical text."""

    def __init__(self, keywords: Sequence[str], patterns: Sequence[str], *, bounded: bool = False) -> None:
        """`bounded`: it is looked for in pieces of a text.

        Raises:
            InvalidArgument: for the first of them that can't be used.
        """
        for keyword in keywords:
            if not canonical_text(keyword).strip():
                raise InvalidArgument(f"the keyword {keyword!r} has nothing in it that can be seen")
        for pattern in patterns:
            found = compiled(pattern)
            if found.programsize > MAX_PROGRAM:
                raise InvalidArgument(
                    f"{pattern!r} is too large, {found.programsize:,} steps of at most {MAX_PROGRAM:,}; say {{0,20}} "
                    r"rather than {0,200}, and [a-z] rather than \pL"
                )
            if found.search("") is not None:
                raise InvalidArgument(f"{pattern!r} is found in every text; write what it should find")
        alternatives = [*words(keywords), *patterns]
        self.width = 0
        """The most characters of a match, where it is bounded."""
        if bounded:
            self.width = max(_width(pattern) for pattern in alternatives)
        # Flags in one of them end where it ends.
        self._pattern = compiled("|".join(f"(?:{pattern})" for pattern in alternatives))

    def found(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def first(self, text: str, since: int) -> int | None:
        """Where the first match that begins at `since` or later begins."""
        match = self._pattern.search(text, since)
        return None if match is None else match.start()


def _width(pattern: str) -> int:
    try:
        return width(pattern)
    except InvalidArgument as error:
        raise InvalidArgument(f"{pattern!r}: {error.message}") from None


def _word(keyword: str) -> str:
    # One blank stands for any, up to a few: a phrase is the same over two lines.
    parts = canonical_text(keyword).split()
    phrase = r"\s{1,8}".join(_literal(part) for part in parts)
    return ("\\b" if parts[0][0] in _WORD else "") + phrase + ("\\b" if parts[-1][-1] in _WORD else "")


def _literal(text: str) -> str:
    return "".join(char if char in _WORD or ord(char) > 127 else f"\\x{{{ord(char):x}}}" for char in text)  # noqa: PLR2004


def _said(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
