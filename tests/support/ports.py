"""Ports for servers of the tests: free now, and nobody else's until this process ends.

A port that the system hands out (`bind` to 0) may become another connection's own end, or another test's listener, between
the moment it was asked for and the moment its server is started. So these lie below those that the system hands out, and
a lock on a byte of a shared file tells other test processes of this machine that they are taken.
"""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

FIRST: Final = 12_000
END: Final = 32_768
"""From here on Linux hands out ports by itself (`net.ipv4.ip_local_port_range`)."""


def free_port() -> int:
    for port in _candidates():
        if take(port) and _bindable(port):
            return port
    raise OSError(f"no port from {FIRST} to {END - 1} is left for this process")


def free_ports(count: int) -> list[int]:
    """All different."""
    return [free_port() for _ in range(count)]


@cache
def _candidates() -> Iterator[int]:
    """None twice; in an order of this process' own, as a lock does not keep a process from itself."""
    return iter(random.SystemRandom().sample(range(FIRST, END), END - FIRST))


@cache
def _locks() -> int:
    """Open until the process ends, which lets go of what it took."""
    return os.open(Path(tempfile.gettempdir()) / "agentos-test-ports.lock", os.O_RDWR | os.O_CREAT, 0o666)


def take(port: int) -> bool:
    """Whether it is this process' now, until it ends."""
    try:
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    return True


def _bindable(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
