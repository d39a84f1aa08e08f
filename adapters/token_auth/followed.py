"""A file that may change while we run: read again when it has, and looked at no more than once a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from ports.clock import Clock
from ports.errors import AgentOSError, Unavailable

LOOK_EVERY_SECONDS: Final = 1.0
"""What is taken out of a file must be gone as fast as what is revoked in the directory."""
MAX_BYTES: Final = 256 * 1024

ValueT = TypeVar("ValueT")


class Followed(Generic[ValueT]):
    """What `read` makes of the file. `read` raises `ValueError` or one of our errors for what it can't use."""

    def __init__(self, path: Path, read: Callable[[Path], ValueT], clock: Clock, *, remedy: str) -> None:
        self._path = path
        self._read = read
        self._clock = clock
        self._remedy = remedy
        self._value: ValueT | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at: float | None = None

    def value(self) -> ValueT:
        """Raises `Unavailable` while the file can't be read: that is no verdict on anybody."""
        now = self._clock.monotonic()
        if self._looked_at is None or now - self._looked_at >= LOOK_EVERY_SECONDS:
            return self.latest()
        assert self._value is not None, "who looked has it"
        return self._value

    def latest(self) -> ValueT:
        """As `value`, however lately it was looked at."""
        self._looked_at = None
        try:
            status = self._path.stat()
            # The inode too: a file that was replaced within the clock's grain has another one.
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp or self._value is None:
                self._value = self._read(self._path)
                self._stamp = stamp
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError, AgentOSError) as error:
            self._stamp = None
            raise Unavailable(f"{str(self._path)!r} can't be used: {self._remedy}") from error
        self._looked_at = self._clock.monotonic()
        return self._value


def bounded(path: Path) -> bytes:
    """The file's content. Raises `ValueError` where it is too long."""
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return data
