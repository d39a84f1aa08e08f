"""An ASGI extension of ours: to be told that the client left, instead of a task that waits for it with each request."""

from collections.abc import Callable
from typing import Final, TypeAlias

ON_DISCONNECT: Final = "agentos.on_disconnect"
"""Among a scope's `extensions`: takes what is called when the connection ends while the request is at work; afterwards it
may be called too, or not at all."""

OnDisconnect: TypeAlias = Callable[[Callable[[], None]], None]
