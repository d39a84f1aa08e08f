"""Which endings are endings: every pair of status and terminal events."""

from itertools import product
from typing import get_args

import pytest

from ports.errors import InvalidArgument
from ports.event import TERMINAL_EVENTS
from ports.run_rules import check_change
from ports.run_state import TERMINAL_EVENT, Change, NewEvent, RunStatus

STATUSES: list[RunStatus | None] = [None, *get_args(RunStatus)]
LOGS = [
    (),
    ("model.delta",),
    *((one,) for one in sorted(TERMINAL_EVENTS)),
    *(("model.delta", one) for one in sorted(TERMINAL_EVENTS)),
    *((one, "model.delta") for one in sorted(TERMINAL_EVENTS)),
    *((one, other) for one in sorted(TERMINAL_EVENTS) for other in sorted(TERMINAL_EVENTS)),
]


def sound(status: RunStatus | None, log: tuple[str, ...]) -> bool:
    """The rule said anew: a terminal status with its event once and last, or neither."""
    endings = [one for one in log if one in TERMINAL_EVENTS]
    if status not in TERMINAL_EVENT:
        return endings == []
    return endings == [TERMINAL_EVENT[status]] and log[-1] == endings[0]


@pytest.mark.parametrize(("status", "log"), list(product(STATUSES, LOGS)))
def test_a_terminal_status_comes_with_its_event_once_and_last(status: RunStatus | None, log: tuple[str, ...]) -> None:
    told = tuple(NewEvent(type=one) for one in log)
    change = Change(status=status, waits_for="child" if status == "waiting" else None, events=told)

    if sound(status, log):
        check_change(change)
    else:
        with pytest.raises(InvalidArgument):
            check_change(change)
