"""Values that several ports share: JSON, token usage, a page of a listing."""

from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import Struct

Json: TypeAlias = Any
"""A decoded JSON value: None, bool, int, float, str, list or dict with string keys. The checker can't say it better."""

ItemT = TypeVar("ItemT")


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """What model calls consumed. Integers only; money in nano-US-dollars (10⁻⁹ USD)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False
    """True when any part was counted by us because the backend reported none."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_nanousd=self.cost_nanousd + other.cost_nanousd,
            estimated=self.estimated or other.estimated,
        )


class Fault(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as data: in the journal, in events, in a run's `error`."""

    code: str
    message: str
    retryable: bool = False


class Page(Struct, Generic[ItemT], frozen=True, kw_only=True):
    """Part of a listing. `next_cursor` is opaque, and None on the last page."""

    items: tuple[ItemT, ...]
    next_cursor: str | None = None
