"""When Python's collector of cycles looks, in a service."""

import gc
from typing import Final

ALLOCATIONS: Final = 5_000
"""Objects that come and stay between two looks. What requests and runs make goes by its count of references; the
interpreter's own 700 are a few requests. Everything waits for a look, which took 10 ms and more at four times as many."""


def start_is_over() -> None:
    """What was built until now lives as long as the process: the collector needn't look at it again.

    Without this it does from time to time, and all that the process has under way waits for it, 60 ms and more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 10, 10)
