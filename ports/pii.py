"""PiiDetector: personal data and secrets in a text, as spans.

Clauses (each has a test in `conformance.pii`):

* PII-1  Spans lie inside the text, do not overlap, and come in order.
* PII-2  Each class in `capabilities.classes` is found in its published samples.
* PII-3  A text without personal data gives no spans; numbers, dates and identifiers of ours are not personal data.
* PII-4  Detection sees through full-width forms, zero-width characters and soft hyphens; the spans are those of the
         text given.
"""

from typing import Protocol

from msgspec import Struct

from ports.context import AuthContext


class Span(Struct, frozen=True, kw_only=True):
    start: int
    end: int
    kind: str
    """For example `email`, `payment_card`, `secret`."""


class PiiCapabilities(Struct, frozen=True, kw_only=True):
    classes: frozenset[str] = frozenset()


class PiiDetector(Protocol):
    """Pure and thread-safe. Raises `Unavailable` when it can't decide: callers fail closed."""

    @property
    def capabilities(self) -> PiiCapabilities: ...

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]: ...
