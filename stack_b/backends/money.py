"""Prices as people write them. Pure."""

from decimal import Decimal, DecimalException
from typing import Final

from ports.errors import InvalidArgument

MOST_USD: Final = 1_000_000
"""For a million tokens. What the longest request costs at that is still a number that a ledger can hold."""
_LONGEST: Final = 40
"""Characters: exact, whatever they are."""


def nanousd_of(text: str) -> int:
    """Of US dollars for a million tokens, such as "0.15". Raises `InvalidArgument`."""
    shown = text[:_LONGEST]
    try:
        dollars = Decimal(text if len(text) <= _LONGEST else "")
    except DecimalException:
        raise InvalidArgument(f"{shown!r} is not a price; write US dollars per million tokens, such as 0.15") from None
    if not dollars.is_finite() or dollars < 0 or dollars > MOST_USD:
        raise InvalidArgument(f"{shown!r} is not a price; it is 0 to {MOST_USD:,} US dollars per million tokens")
    amount = int(dollars.scaleb(9))
    if Decimal(amount).scaleb(-9) != dollars:
        raise InvalidArgument(f"{shown!r} is not a price in whole nano-dollars per million tokens")
    return amount
