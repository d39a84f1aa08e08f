"""Run one command with one JSON document on its standard input, and leave nothing of it behind.

However the call ends (the command exits, its time is over, the caller is cancelled, the worker is killed) its whole process
group ends with it. Who leads it is asked with SIGTERM first and has `grace` to tidy up; what is left then is killed.
A process that leaves the group on purpose (`setsid`) escapes; a sandbox of the operator's can stop that, we don't.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from msgspec import Struct

MAX_STDERR_BYTES: Final = 4 * 1024
"""Kept of what a command says on standard error: the end of it."""
DRAIN_S: Final = 1.0
"""For output that is still in the pipes when the group has ended; only a process that left the group holds them longer."""

_LAUNCH: Final = str(Path(__file__).with_name("launch.py"))
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ")


class Ended(Struct, frozen=True, kw_only=True):
    """How a command ended by itself."""

    code: int
    """Its exit code; negative for the signal that ended it."""
    output: bytes
    """At most the bytes asked for."""
    size: int
    """Of all it wrote on standard output."""
    stderr: bytes
    """The last `MAX_STDERR_BYTES`."""


def environment(home: str, environ: Mapping[str, str]) -> dict[str, str]:
    """All that a command gets of `environ`: where programs are, the language and the time zone."""
    kept = {name: environ[name] for name in _KEPT if environ.get(name)}
    kept.setdefault("PATH", os.defpath)
    return {**kept, "HOME": home, "TMPDIR": home}


async def run(
    command: Sequence[str], document: bytes, *, environ: Mapping[str, str], max_output: int, grace: float
) -> Ended:
    """How `command` ended, in a new directory that is removed afterwards. `grace` is in seconds.

    Raises:
        OSError: no process can be started.
    """
    async with _directory() as home, _started(command, environment(home, environ), grace) as process:
        output, errors = _Head(max_output), _Tail(MAX_STDERR_BYTES)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with anyio.create_task_group() as group:
            group.start_soon(_feed, process.stdin, document)
            group.start_soon(_drain, process.stdout, output)
            group.start_soon(_drain, process.stderr, errors)
            code = await process.wait()
            # What it left running would hold the streams, and act on after we have answered.
            _signal(process, signal.SIGKILL)
            group.cancel_scope.deadline = anyio.current_time() + DRAIN_S
    return Ended(code=code, output=bytes(output.kept), size=output.size, stderr=bytes(errors.kept))


class _Head:
    """Keeps the beginning of a stream and counts the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept = bytearray()
        self.size = 0

    def take(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.kept += chunk[: self._limit - len(self.kept)]


class _Tail:
    """Keeps the end of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept = bytearray()

    def take(self, chunk: bytes) -> None:
        self.kept += chunk
        del self.kept[: -self._limit]


async def _feed(stream: ByteSendStream, document: bytes) -> None:
    """A command that doesn't read to the end does not want to."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
        async with stream:
            await stream.send(document)


async def _drain(stream: ByteReceiveStream, kept: _Head | _Tail) -> None:
    """To the end, whatever is kept of it: a command must not wait for us to read."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            kept.take(await stream.receive())


@asynccontextmanager
async def _directory() -> AsyncIterator[str]:
    home = await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "agentos-tool-")
    try:
        yield home
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove, home)


def _remove(home: str) -> None:
    shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def _started(command: Sequence[str], environ: dict[str, str], grace: float) -> AsyncIterator[Process]:
    """The leader of a group of its own; nothing of the group is left at the end."""
    lifeline, held = os.pipe()
    try:
        try:
            # Not to be interrupted half-way: nobody would know whom to end.
            with anyio.CancelScope(shield=True):
                process = await anyio.open_process(
                    [sys.executable, "-I", "-S", _LAUNCH, str(lifeline), *command],
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=PIPE,
                    cwd=environ["HOME"],
                    env=environ,
                    start_new_session=True,
                    pass_fds=(lifeline,),
                )
        finally:
            os.close(lifeline)
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process, grace)
    finally:
        # Whatever became of the lines above: from here on the watch in the group ends it.
        os.close(held)


async def _end(process: Process, grace: float) -> None:
    """Ask, wait, and end what is left.

    Waits for the end of the streams too: where the leader is a shell, it is its children that have something to tidy up.
    And whoever is asked to end may first have to get rid of output.
    """
    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            with anyio.move_on_after(grace):
                async with anyio.create_task_group() as group:
                    for stream in (process.stdout, process.stderr):
                        assert stream is not None
                        group.start_soon(_drain, stream, _Tail(1))
                    await process.wait()
    finally:
        _signal(process, signal.SIGKILL)
    await process.aclose()


def _signal(process: Process, number: signal.Signals) -> None:
    """To every member of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
