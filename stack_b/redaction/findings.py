"""What was found, without saying what it was."""

from collections.abc import Mapping

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True):
    kind: str
    count: int


def findings_of(kinds: Mapping[str, int]) -> tuple[Finding, ...]:
    return tuple(Finding(kind=kind, count=kinds[kind]) for kind in sorted(kinds))
