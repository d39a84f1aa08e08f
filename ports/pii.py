"""PiiDetector: personal data and secrets in a text, as spans.

Clauses (each has a test in `conformance.pii`):

* PII-1  Spans lie inside the text, do not overlap, and come in order.
* PII-2  Each class in `capabilities.classes` is found in its published samples.
* PII-3  A text without personal data gives no spans; numbers, dates and identifiers of ours are not personal data.
* PII-4  Detection sees through full-width and other compatibility forms, what shows nothing, marks on letters and digits,
         and through the escapes of HTML, URLs and JSON, in each other too; the spans are those of the text given.
* PII-5  What is found in a text is found in its pieces, where it is cut at a seam (`ports.pii_rules.seam`): a text that
         comes bit by bit can be decided on the way.
* PII-6  Without `capabilities.plain_words`, nothing is found in a text of plain prose (`ports.pii_rules.is_prose`): whoever
         asks need not ask about that.
* PII-7  What `elsewhere` gives finds, in another process it is sent to, what `detect` finds; with `capabilities.at_once`
         in this one as well.
"""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from ports.context import AuthContext

PiiMode: TypeAlias = Literal["redact", "reversible", "block", "allow"]
"""What becomes of a finding: a typed placeholder, one that is undone in the answer, a refusal, or nothing."""


class Span(Struct, frozen=True, kw_only=True):
    start: int
    end: int
    kind: str
    """For example `email`, `payment_card`, `secret`."""


Finder: TypeAlias = Callable[[str], tuple[Span, ...]]
"""Finds without waiting, and can be pickled."""


class PiiCapabilities(Struct, frozen=True, kw_only=True):
    classes: frozenset[str] = frozenset()
    plain_words: bool = False
    """Finds what looks like any other word, such as names: then a line is decided as a whole."""
    at_once: bool = False
    """What `elsewhere` gives loads nothing and is quick: short texts need not be awaited."""


class PiiDetector(Protocol):
    """Pure and thread-safe. Raises `Unavailable` when it can't decide: callers fail closed."""

    @property
    def capabilities(self) -> PiiCapabilities: ...

    def elsewhere(self) -> Finder | None:
        """To look at long texts in another process; None where they can be looked at here only."""
        ...

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]: ...
