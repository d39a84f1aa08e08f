"""Random ids for what comes thousands of times a second: the kernel is asked for many at a time."""

import os
from collections import deque
from typing import Final

AT_ONCE: Final = 64


class Randoms:
    """Each `size_bytes` of the kernel's randomness, in hexadecimal, given out once; a child process has its own."""

    def __init__(self, size_bytes: int) -> None:
        self._digits = 2 * size_bytes
        self._left: deque[str] = deque()
        os.register_at_fork(after_in_child=self._left.clear)

    def take(self) -> str:
        """Safe to call from any thread."""
        try:
            return self._left.popleft()
        except IndexError:
            more = os.urandom(self._digits // 2 * AT_ONCE).hex()
            self._left.extend([more[at : at + self._digits] for at in range(self._digits, len(more), self._digits)])
            return more[: self._digits]
