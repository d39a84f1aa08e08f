"""How many slots a worker keeps for tenants that have nothing under way."""

import pytest

from stack_a.slots import RESERVED_FROM, reserve_of


@pytest.mark.parametrize(
    ("concurrency", "kept"), [(1, 0), (RESERVED_FROM - 1, 0), (RESERVED_FROM, 1), (31, 1), (32, 2), (1_000, 62)]
)
def test_one_in_sixteen_is_kept_and_of_few_none(concurrency: int, kept: int) -> None:
    assert reserve_of(concurrency) == kept
