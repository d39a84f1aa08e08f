"""What a service does once, when all is built that lives as long as itself."""

import gc
from typing import Final

from deploy.roots.huge_pages import onto_huge_pages

ALLOCATIONS: Final = 5_000
"""Objects that come and stay between two looks of Python's collector of cycles. What requests and runs make goes by its
count of references; the interpreter's own 700 are a few requests. Everything waits for a look, which took 10 ms and more at
four times as many."""


def start_is_over() -> None:
    """The collector needn't look again at what was built until now, and huge pages are worth their while for it.

    Without this the collector does from time to time, and all that the process has under way waits for it, 60 ms and more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 10, 10)
    onto_huge_pages()
