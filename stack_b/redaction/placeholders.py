"""The placeholders of one request that its answer undoes. They live as long as the request, and no other one sees them."""

import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from ports.messages import Json
from stack_b.redaction.rules import TAG_LETTERS, PiiRules
from stack_b.redaction.spans import placeholder

_LEAST_PREFIX: Final = 2
"""Of a placeholder that was cut off; a bracket alone is anybody's."""


class Mark(NamedTuple):
    """A placeholder in a text, and what the client shall read instead."""

    start: int
    end: int
    shown: str


class Placeholders:
    def __init__(self, rules: PiiRules) -> None:
        self._rules = rules
        self._values: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._numbers: set[str] = set()
        """Tags of values that were no texts."""
        self._pattern: re.Pattern[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._values)

    def of(self, kind: str, value: str, *, number: bool = False) -> str:
        """The placeholder for `value`, remembered. A `number` has another one than the text of its digits."""
        tag = self._rules.tag(kind, f"{value}\0" if number else value)
        if number:
            self._numbers.add(tag)
        self._values[tag] = value
        self._kinds[tag] = kind.upper()
        self._pattern = None
        return f"[{kind.upper()}_{tag}]"

    def marks(self, text: str) -> Iterator[Mark]:
        """Every placeholder of ours in `text`, in order, also as models distort them.

        That is: without a bracket, in another case, with Markdown's backslashes, or with the end missing. One that can't be
        undone any more becomes a typed placeholder.
        """
        if not self._values:
            return
        for match in self._regex().finditer(text):
            kind, tag = match[1].replace("\\", "").upper(), match[2].lower()
            value = self._values.get(tag)
            if value is not None:
                yield Mark(match.start(), match.end(), value)
            elif any(known.startswith(tag) and self._kinds[known] == kind for known in self._values):
                yield Mark(match.start(), match.end(), placeholder(kind))

    def number(self, text: str) -> Json:
        """The number that `text` is the placeholder of; None where it is anything else."""
        if not self._numbers:
            return None
        match = self._regex().fullmatch(text.strip())
        tag = match[2].lower() if match else ""
        return json.loads(self._values[tag]) if tag in self._numbers else None

    def standing(self, text: str) -> str:
        """`text` with the values that were undone in it replaced again."""
        for tag, value in sorted(self._values.items(), key=lambda known: -len(known[1])):
            text = text.replace(value, f"[{self._kinds[tag]}_{tag}]")
        return text

    def cut_short(self, text: str) -> Mark | None:
        """A placeholder that `text`, which ends here, only begins."""
        at = text.rfind("[")
        tail = text[at:].upper()
        if at < 0 or len(tail) < _LEAST_PREFIX:
            return None
        for kind in self._kinds.values():
            if f"[{kind}_".startswith(tail):
                return Mark(at, len(text), placeholder(kind))
        return None

    def _regex(self) -> re.Pattern[str]:
        if self._pattern is None:
            kinds = "|".join(re.escape(kind).replace("_", r"\\?_") for kind in sorted(set(self._kinds.values())))
            self._pattern = re.compile(rf"(?:\\?\[)?({kinds})\\?_([a-z]{{1,{TAG_LETTERS}}})(?:\\?\])?", re.IGNORECASE)
        return self._pattern
