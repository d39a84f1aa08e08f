"""The arithmetic of the benches. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from math import ceil, floor, log10


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed: one that was measured, not a mix."""
    if not values:
        raise ValueError("no values, no percentile")
    if not 0 < share <= 1:
        raise ValueError(f"a share lies above 0 and up to 1, not at {share}")
    return sorted(values)[ceil(share * len(values)) - 1]


def ratio(part: float, whole: float) -> float:
    """`part` / `whole`; nothing was measured where `whole` is 0, and a figure made of nothing must not look like one."""
    if whole <= 0:
        raise ValueError(f"can't relate {part} to {whole}")
    return part / whole


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds, which all measured the same figures."""
    return {key: statistics.median(values) for key, values in _columns(rounds).items()}


def spreads(rounds: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value of each figure."""
    return {key: (min(values), max(values)) for key, values in _columns(rounds).items()}


def shown(value: float) -> str:
    """Three significant digits, no exponent: more would be noise."""
    if value == 0:
        return "0"
    digits = 2 - floor(log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _columns(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    if not rounds:
        raise ValueError("no rounds, no figures")
    if any(one.keys() != rounds[0].keys() for one in rounds):
        raise ValueError("the rounds did not measure the same figures")
    return {key: [one[key] for one in rounds] for key in rounds[0]}
