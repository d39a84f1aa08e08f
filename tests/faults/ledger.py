"""What clients were promised, written down by the clients themselves."""

from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

RECONNECTS: Final = 5
"""How often somebody comes back to a run's events who means to see that none is lost by it."""


class Seen(Struct, frozen=True):
    """One event as a client received it."""

    sequence: int
    event_id: str
    type: str


@dataclass
class Ledger:
    acked: dict[str, str] = field(default_factory=dict)
    """Run → the key it was promised under."""
    answers: dict[str, set[str]] = field(default_factory=dict)
    """Key → every run a 202 named for it."""
    streams: dict[str, list[list[Seen]]] = field(default_factory=dict)
    """Run → what each followed stream gave, over all its reconnects."""
    reconnects: dict[str, int] = field(default_factory=dict)
    """Run → how often a reader left its stream while the load lasted, and came back."""
    refusals: dict[str, int] = field(default_factory=dict)
    """How requests were refused or failed, by status or error."""
    raced: int = 0
    """Cancels that were heard and may have met the run's end."""

    @property
    def followed(self) -> int:
        """Runs whose readers came back often enough."""
        return sum(times >= RECONNECTS for times in self.reconnects.values())

    def accept(self, key: str, run_id: str) -> None:
        self.acked[run_id] = key
        self.answers.setdefault(key, set()).add(run_id)

    def refuse(self, why: str) -> None:
        self.refusals[why] = self.refusals.get(why, 0) + 1
