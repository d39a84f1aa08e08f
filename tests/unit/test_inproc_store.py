"""What a storage in this process hands out and takes in: nothing that a caller could change behind its back."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from msgspec import Struct
from msgspec.structs import force_setattr

from adapters.inproc.run_state import new_run as run_of
from adapters.inproc.store import own
from conformance.factories import new_run
from conformance.people import ACME
from conformance.strategies import json_values
from ports.ids import RunId
from ports.messages import Json
from ports.run_state import Run


class Open(Struct):
    """What may be changed, unlike every message of the ports."""

    held: Json


def run_with(value: Json) -> Run:
    run = run_of(RunId("run_1"), ACME, new_run(deadline=timedelta(minutes=1)), datetime(2026, 1, 1, tzinfo=UTC))
    force_setattr(run, "output", value)
    return run


def changeable(value: Any) -> Iterator[int]:
    """The identity of everything in a value that somebody could change."""
    if isinstance(value, Open | dict | list):
        yield id(value)
    if isinstance(value, Struct):
        yield from (one for name in value.__struct_fields__ for one in changeable(getattr(value, name)))
    elif isinstance(value, dict):
        yield from (one for item in value.values() for one in changeable(item))
    elif isinstance(value, list | tuple):
        yield from (one for item in value for one in changeable(item))


@given(value=json_values())
def test_a_copy_equals_its_original_and_shares_nothing_that_could_be_changed(value: Json) -> None:
    original = (run_with(value), {"value": (value, [value])}, Open(held=value))

    copied = own(original)

    assert copied == original
    assert not set(changeable(copied)) & set(changeable(original))


def test_what_holds_nothing_that_could_be_changed_is_not_copied() -> None:
    assert own(ACME) is ACME
    assert own(run_with(None)).requester is ACME
