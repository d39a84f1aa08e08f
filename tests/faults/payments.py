"""E10: a model call is paid once. Which steps were paid twice, and whether what the driver did explains it.

A second payment is allowed where the gateway was lost within the call, so that nobody could write its reply down: the step
is in doubt then, and its receipt says so (ADR 0010). Whatever becomes of workers, of clients or of PostgreSQL is no excuse:
the gateway finishes the call, and keeps the reply until the journal takes it.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from msgspec import Struct

WRITTEN_WITHIN_S: Final = 10.0
"""From the end of an answer, or of what kept the gateway from its database, until the reply is in the journal."""


@dataclass(kw_only=True)
class Payment:
    """One call as the model's provider saw it. Times are those of the machine, in seconds since 1970."""

    life: int
    """Which process of the gateway asked: they are numbered in the order they were started."""
    asked_at: float
    answered_at: float = math.inf


@dataclass
class Span:
    began: float
    ended: float = math.inf


@dataclass
class Disturbed:
    """What the driver did to the gateway, by the same clock."""

    killed: dict[int, float] = field(default_factory=dict)
    """Life → when it was killed."""
    spans: list[Span] = field(default_factory=list)
    """When its database, or the line to it, was killed, stopped or disturbed."""

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """From its database, while the block runs."""
        span = Span(time.time())
        self.spans.append(span)
        try:
            yield
        finally:
            span.ended = time.time()


class PaidTwice(Struct, frozen=True, kw_only=True):
    in_doubt: list[str]
    """Steps, by place."""
    unexplained: dict[str, str]
    """Step → why nothing that was done explains it."""


def paid_twice(
    payments: Mapping[str, Sequence[Payment]], journaled: Mapping[str, float], disturbed: Disturbed
) -> PaidTwice:
    """`journaled`: step → when its reply was first in the journal."""
    in_doubt, unexplained = [], {}
    for place, paid in payments.items():
        if len(paid) < 2:
            continue
        whys = [
            why
            for first, second in pairwise(paid)
            if (why := objection(first, second, journaled.get(place, math.inf), disturbed))
        ]
        if whys:
            unexplained[place] = "; ".join(whys)
        else:
            in_doubt.append(place)
    return PaidTwice(in_doubt=in_doubt, unexplained=unexplained)


def objection(first: Payment, second: Payment, journaled_at: float, disturbed: Disturbed) -> str | None:
    """Why the second payment should not have been made; None where the gateway was lost within the first call."""
    if journaled_at <= second.asked_at:
        return f"the reply was in the journal {second.asked_at - journaled_at:.1f} s before"
    killed_at = disturbed.killed.get(first.life, math.inf)
    if killed_at > second.asked_at:
        return f"the gateway that had asked first, {second.asked_at - first.asked_at:.1f} s before, was not killed"
    end = under_way_until(first, disturbed.spans)
    if killed_at > end:
        return f"the reply was not in the journal {killed_at - first.answered_at:.1f} s after it had come"
    return None


def under_way_until(payment: Payment, spans: Sequence[Span]) -> float:
    """How long its reply may be in the gateway's hands only, were it not lost."""
    end = payment.answered_at + WRITTEN_WITHIN_S
    for span in sorted(spans, key=lambda one: one.began):
        if span.began <= end:
            end = max(end, span.ended + WRITTEN_WITHIN_S)
    return end
