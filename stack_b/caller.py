"""Who waits for an answer, and what it means when they no longer do."""

from collections.abc import Callable


class Caller:
    """One request's. When they leave, the call under way ends at once, unless it would be billed to its end all the same:
    then it is read to its end, so that what is settled is what was billed."""

    def __init__(self) -> None:
        self.gone = False
        self.bound = False
        """The call under way goes on without them."""
        self.on_leaving: Callable[[], None] = lambda: None
        """Ends everything that is done for them."""

    def leave(self) -> None:
        self.gone = True
        if not self.bound:
            self.on_leaving()
