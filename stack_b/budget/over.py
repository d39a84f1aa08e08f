"""Which soft budgets are beyond their limits, by what was spent. What is only held, or leased for others, is not."""

from collections.abc import Iterable

from ports.budget import Amount, Left


def over(left: Iterable[Left], spent: Amount) -> tuple[str, ...]:
    """`left`: what there was before `spent`."""
    return tuple(one.budget for one in left if spent.of(one.unit) > one.amount)
