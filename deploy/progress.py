"""How an action tells what it is doing, as it happens. The terminal implements it; tests use a list."""

from typing import Protocol

from deploy.report import Check, Phase


class Progress(Protocol):
    def phase_began(self, name: str) -> None: ...

    def milestone(self, text: str) -> None:
        """Something inside the phase came true, such as `services healthy 3/4`."""
        ...

    def checked(self, check: Check) -> None: ...

    def phase_ended(self, phase: Phase) -> None: ...

    def note(self, text: str) -> None:
        """Worth knowing, and no failure."""
        ...
