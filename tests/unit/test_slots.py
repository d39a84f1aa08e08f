"""How many slots a worker keeps for tenants that have nothing under way."""

import pytest

from stack_a.slots import RESERVED_FROM, Slots, reserve_of


@pytest.mark.parametrize(
    ("concurrency", "kept"), [(1, 0), (RESERVED_FROM - 1, 0), (RESERVED_FROM, 1), (31, 1), (32, 2), (1_000, 62)]
)
def test_one_in_sixteen_is_kept_and_of_few_none(concurrency: int, kept: int) -> None:
    assert reserve_of(concurrency) == kept


def test_slots_are_crowded_from_half_of_them_on() -> None:
    slots = Slots(7)
    crowded = []
    for slots.in_hand in range(8):
        crowded.append(slots.crowded)

    assert crowded == [False] * 4 + [True] * 4
