"""A listening socket goes from the process that serves to the one that shall, and no connection is lost between them.

Whoever serves an address keeps a door beside it: a UNIX socket in the node's own directory. Who knocks is told which
process keeps it, and is given the listening sockets themselves. Both processes then accept from one queue, which the
kernel holds for as long as one of them has it open. The successor puts its own door in the place of the old one once it
accepts.
"""

import asyncio
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

_ANSWER_S: Final = 2.0
_MOST_SOCKETS: Final = 16
"""An address by name may be several."""
_MESSAGE_BYTES: Final = 4_096


class Keeper(Struct, frozen=True, kw_only=True):
    pid: int
    host: str
    port: int
    """The address as its settings have it."""


class Door:
    """The door of this process."""

    def __init__(self, path: Path, *, host: str, port: int) -> None:
        self._path = path
        self._keeper = Keeper(pid=os.getpid(), host=host, port=port)
        self._listener: socket.socket | None = None
        self._inode = 0
        self._answering: asyncio.Task[None] | None = None

    def open(self, descriptors: Iterable[int]) -> None:
        """Hand out these listening sockets from now on, in the place of whoever did before."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        ours = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        ours.unlink(missing_ok=True)
        self._listener.bind(os.fspath(ours))
        self._listener.listen()
        self._inode = ours.stat().st_ino
        ours.replace(self._path)
        self._answering = asyncio.create_task(self._answer(self._listener, tuple(descriptors)))

    def close(self) -> None:
        """Hand out nothing more; to be called before the sockets are closed."""
        if self._answering is not None:
            self._answering.cancel()
        if self._listener is not None:
            self._listener.close()

    def superseded(self) -> bool:
        """Whether a successor has put its door in the place of ours, so that it accepts."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    async def _answer(self, listener: socket.socket, descriptors: tuple[int, ...]) -> None:
        message = msgspec.json.encode(self._keeper)
        loop = asyncio.get_running_loop()
        while True:
            visitor, _ = await loop.sock_accept(listener)
            with visitor:
                try:
                    socket.send_fds(visitor, [message], descriptors)
                except OSError:
                    # Gone before it was answered.
                    continue


def keeper(path: Path) -> Keeper | None:
    """Who accepts behind the door; None when nobody answers there."""
    found = _knock(path)
    if found is None:
        return None
    who, sockets = found
    _drop(sockets)
    return who


def inherited(path: Path, *, host: str, port: int) -> list[socket.socket]:
    """The listening sockets of whoever serves this address now; none when nobody does."""
    found = _knock(path)
    if found is None:
        return []
    who, sockets = found
    if (who.host, who.port) == (host, port):
        return sockets
    _drop(sockets)
    return []


def _knock(path: Path) -> tuple[Keeper, list[socket.socket]] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.settimeout(_ANSWER_S)
        try:
            visitor.connect(os.fspath(path))
            message, descriptors, _, _ = socket.recv_fds(visitor, _MESSAGE_BYTES, _MOST_SOCKETS)
        except OSError:
            # No door, or only what a process that was killed left of it, or one that hangs.
            return None
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for one in sockets:
        one.set_inheritable(False)
    if not message:
        return None
    return msgspec.json.decode(message, type=Keeper), sockets


def _drop(sockets: Iterable[socket.socket]) -> None:
    """Close our copies; nobody else's are touched."""
    for one in sockets:
        one.close()
