"""Prices by version: what a model costs from when on. They go before the price that a backend's settings name."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ports.errors import InvalidArgument
from stack_b.backends.catalog import Candidate
from stack_b.backends.money import nanousd_of
from stack_b.backends.protocol import Price


class PriceRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars for a million tokens, as texts, which lose no digit."""

    model: str
    valid_from: datetime
    prompt: str
    completion: str = "0"
    cache_read: str | None = None
    cache_write: str | None = None
    reasoning: str | None = None


class Prices:
    def __init__(self, rows: Iterable[PriceRow] = ()) -> None:
        self._by_model: dict[str, list[tuple[datetime, Price]]] = {}
        for row in sorted(rows, key=lambda row: row.valid_from):
            versions = self._by_model.setdefault(row.model, [])
            if versions and versions[-1][0] == row.valid_from:
                raise InvalidArgument(f"the price of {row.model!r} from {row.valid_from.isoformat()} is there twice")
            versions.append((row.valid_from, _price(row)))

    def follow(self, other: "Prices") -> None:
        """From the next request on these."""
        self._by_model = other._by_model  # noqa: SLF001 - of the same class

    def of(self, model: str, at: datetime) -> Price | None:
        """The price in force; None where there is none yet."""
        versions = self._by_model.get(model)
        if versions is None:
            return None
        found = bisect_right(versions, at, key=lambda version: version[0])
        return versions[found - 1][1] if found else None

    def at(self, now: Callable[[], datetime]) -> Callable[[Candidate], Candidate] | None:
        """What gives a candidate its price in force; None where no model has one of ours."""
        return partial(self.priced, at=now()) if self._by_model else None

    def priced(self, candidate: Candidate, at: datetime) -> Candidate:
        """With the price in force, where there is one of ours."""
        price = self.of(candidate.card.id, at)
        return candidate if price is None else Candidate(candidate.backend, replace(candidate.card, price=price))


def parse_rows(text: str) -> tuple[PriceRow, ...]:
    """From a JSON list; an empty text is none. Raises `InvalidArgument`."""
    try:
        rows = msgspec.json.decode(text or "[]", type=tuple[PriceRow, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"the prices are not usable: {error}") from None
    check_prices(rows)
    return rows


def parse_prices(text: str) -> Prices:
    """As `parse_rows`."""
    return Prices(parse_rows(text))


def check_prices(rows: Iterable[PriceRow]) -> None:
    """Raise `InvalidArgument` for a price that is no number, one from no moment, or two of a model from the same one."""
    found = tuple(rows)
    for row in found:
        check_price(row)
    Prices(found)


def check_price(row: PriceRow) -> None:
    if row.valid_from.tzinfo is None:
        raise InvalidArgument(f"the price of {row.model!r}: valid_from needs an offset, such as 2026-01-01T00:00:00Z")
    try:
        _price(row)
    except InvalidArgument as error:
        raise InvalidArgument(f"the price of {row.model!r}: {error.message}") from None


def overlaid(rows: Sequence[PriceRow], others: Sequence[PriceRow]) -> tuple[PriceRow, ...]:
    """`rows`, and `others` for the models that have none there."""
    models = {row.model for row in rows}
    return (*rows, *(row for row in others if row.model not in models))


def _price(row: PriceRow) -> Price:
    def optional(text: str | None) -> int | None:
        return None if text is None else nanousd_of(text)

    return Price(
        prompt=nanousd_of(row.prompt),
        completion=nanousd_of(row.completion),
        cache_read=optional(row.cache_read),
        cache_write=optional(row.cache_write),
        reasoning=optional(row.reasoning),
        version=f"{row.model}@{row.valid_from.isoformat()}",
    )
