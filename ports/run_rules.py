"""What may be appended to a run: the rules of RunState that need no store, shared by its adapters."""

from ports.errors import InvalidArgument
from ports.event import TERMINAL_EVENTS
from ports.run_state import TERMINAL, TERMINAL_EVENT, Change


def check_change(change: Change) -> None:
    """Raise `InvalidArgument` unless a terminal status comes with its terminal event, once and last (RUN-10)."""
    endings = [event.type for event in change.events if event.type in TERMINAL_EVENTS]
    if change.status is None or change.status not in TERMINAL:
        if endings:
            raise InvalidArgument(f"{endings[0]} needs a change to a terminal status, not to {change.status!r}")
        return
    due = TERMINAL_EVENT[change.status]
    if endings != [due]:
        raise InvalidArgument(f"a change to {change.status!r} needs exactly one terminal event, {due}, not {endings}")
    if change.events[-1].type != due:
        raise InvalidArgument(f"{due} must be the last event of its change, not {change.events[-1].type}")
