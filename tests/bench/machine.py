"""What a bench runs on: a PostgreSQL of its own with production settings, processes of its own, and their CPU time."""

import asyncio
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

import psutil

from adapters.postgres.bootstrap import RolePasswords
from deploy import embedded_postgres as embedded
from ports.errors import Unavailable
from tests.support.ports import free_port
from tests.support.postgres import Server, fetch

ROOT: Final = Path(__file__).resolve().parents[2]
READY: Final = "ready"
"""What a process of ours writes to stdout once it works."""

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 20.0
_FLUSH_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02
_GATEWAYS_CPU: Final = 0
_KTHREADD: Final = 2
"""Whose children all threads of the kernel are."""
_FIRST: Final = 5
"""A real-time priority."""

NO_WORLD_APART: Final = (
    "latencies with the rest apart: that takes two processors, the right to give real-time priority (root), "
    "and `taskset` and `chrt` (apt install util-linux)"
)


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory for logs, keys and configuration, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as made:
        yield Path(made)


@contextmanager
def database(home: Path) -> Iterator[Server]:
    """An embedded server with the settings of production (it waits for the disk), migrated; gone at the end."""
    layout = embedded.Layout(home / "postgres")
    password = secrets.token_urlsafe(16)
    embedded.prepare(layout, superuser_password=password)
    port = free_port()
    process = embedded.start(layout, port)
    try:
        embedded.wait_ready(port)
        passwords = RolePasswords(
            owner=secrets.token_hex(8),
            app=secrets.token_hex(8),
            admin=secrets.token_hex(8),
            control=secrets.token_hex(8),
        )
        server = Server(layout=layout, port=port, superuser_password=password, passwords=passwords)
        embedded.set_up_database(server.dsn("postgres", "postgres"), server.dsn("ao_owner"), passwords)
        yield server
    finally:
        embedded.stop(layout)
        process.wait(_STOP_SECONDS)
        embedded.destroy(layout)


@contextmanager
def child(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, announces: bool = False
) -> Iterator[psutil.Process]:
    """A process with nothing of the caller's environment that could change a figure; asked to end at the end.

    With `announces` the block begins once it has written `READY`.

    Raises:
        Unavailable: it ended instead, with the end of its log.
    """
    base = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            env={**base, **(environment or {})},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if announces else sink,
            stderr=sink,
            text=True,
        )
    try:
        if process.stdout is not None and process.stdout.readline().strip() != READY:
            raise Unavailable(f"{command} ended before it was ready: {log.read_text()[-2_000:]}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def on_one_cpu() -> list[str]:
    """What a gateway's command begins with, so that each has one processor, the same, whatever threads it has.

    Nothing where there is only one, or no `taskset`.
    """
    taskset = shutil.which("taskset")
    return [] if taskset is None or (os.cpu_count() or 1) == 1 else [taskset, "--cpu-list", str(_GATEWAYS_CPU)]


@cache
def can_be_apart() -> bool:
    """Whether `world_apart` can be had here."""
    if not on_one_cpu() or not os.sched_getaffinity(0) > {_GATEWAYS_CPU} or shutil.which("chrt") is None:
        return False
    tried = subprocess.run(["chrt", "--rr", str(_FIRST), "true"], capture_output=True, check=False)
    return tried.returncode == 0


@contextmanager
def world_apart(upstream: psutil.Process, database: psutil.Process) -> Iterator[list[str]]:
    """The gateways' processor for gateways alone, and awake; what a load's command begins with. Then all is as before.

    As if what asks, what answers and the `database`, with its children, were other machines: they have the other
    processors, the load and the upstream with real-time priority. So have threads of the kernel that are bound to none: one
    that looks at memory has a processor for milliseconds. While nothing is to be done, the gateways' processor is
    kept busy by a process that gives way to every other one (`SCHED_IDLE`): a virtual machine's processor that sleeps is
    given back late by its host.
    """
    everywhere = database.cpu_affinity()
    others = [processor for processor in everywhere if processor != _GATEWAYS_CPU]
    with ExitStack() as back:
        for thread in kernel_threads():
            with suppress(psutil.Error, OSError, ValueError):
                before = thread.cpu_affinity()
                thread.cpu_affinity(others)
                back.callback(thread.cpu_affinity, before)
        back.callback(_place, upstream, database, everywhere)
        _place(upstream, database, others)
        back.callback(os.sched_setscheduler, upstream.pid, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setscheduler(upstream.pid, os.SCHED_RR, os.sched_param(_FIRST))
        awake = subprocess.Popen(
            ["chrt", "--idle", "0", *on_one_cpu(), sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL
        )
        back.callback(awake.wait)
        back.callback(awake.kill)
        yield ["chrt", "--rr", str(_FIRST), "taskset", "--cpu-list", ",".join(map(str, others))]


def kernel_threads() -> list[psutil.Process]:
    try:
        return psutil.Process(_KTHREADD).children()
    except psutil.NoSuchProcess:
        # In a container nobody sees them.
        return []


def _place(upstream: psutil.Process, database: psutil.Process, processors: list[int]) -> None:
    upstream.cpu_affinity(processors)
    # Before its children: those to come have what it has.
    database.cpu_affinity(processors)
    for child in database.children():
        with suppress(psutil.NoSuchProcess):
            child.cpu_affinity(processors)


def main_process(server: Server) -> psutil.Process:
    """Raises `Unavailable` where it has ended."""
    main = embedded.server_process(server.layout)
    if main is None:
        raise Unavailable("the bench's own PostgreSQL is gone; see its log for why")
    return main


def wait_until_open(port: int, *, within: float = _START_SECONDS) -> None:
    """Until somebody listens on `port` of this machine."""
    end = time.monotonic() + within
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if time.monotonic() > end:
                raise Unavailable(f"nobody listens on port {port} after {within:.0f} s") from error
            time.sleep(_LOOK_SECONDS)
        else:
            return


def wait_until_ready(port: int, *, within: float = _START_SECONDS) -> None:
    """Until the service on `port` says that it is."""
    end = time.monotonic() + within
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with suppress(OSError):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        connection.close()
        if time.monotonic() > end:
            raise Unavailable(f"the service on port {port} is not ready after {within:.0f} s")
        time.sleep(_LOOK_SECONDS)


def wait_until_said(log: Path, beginning: str, process: psutil.Process, within: float) -> str:
    """The first line in `log` with that beginning. Raises `Unavailable` if the process ends without it, or takes longer."""
    end = time.monotonic() + within
    while True:
        # Asked first: what it wrote before its end is read below.
        over = time.monotonic() > end or process.status() == psutil.STATUS_ZOMBIE
        said = log.read_text(errors="replace")
        for line in said.splitlines(keepends=True):
            if line.startswith(beginning) and line.endswith("\n"):
                return line.strip()
        if over:
            raise Unavailable(f"it did not start: {said[-2_000:]}")
        time.sleep(_LOOK_SECONDS)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return times.user + times.system


def server_cpu_seconds(server: Server) -> float:
    """Of the server and all its processes, those that have ended included."""
    main = main_process(server)
    times = main.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for backend in main.children():
        with suppress(psutil.NoSuchProcess):
            total += cpu_seconds(backend)
    return float(total)


async def writes(server: Server) -> int:
    """Transactions that wrote, so far: each took a number, and most made the server wait for the disk."""
    [row] = await fetch(
        server.dsn("postgres", "postgres"), "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next"
    )
    return int(row["next"])


async def commits(server: Server) -> int:
    """Transactions committed in our database so far, those that only read included.

    Sessions tell what they did with up to ten seconds' delay, and at their end: call this when all have ended.
    """
    dsn = server.dsn("postgres", "postgres")
    end = time.monotonic() + _FLUSH_SECONDS
    while True:
        [row] = await fetch(
            dsn,
            """
            SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = 'agentos') AS commits,
                   (SELECT count(*) FROM pg_stat_activity
                    WHERE datname = 'agentos' AND backend_type = 'client backend') AS sessions
            """,
        )
        if row["sessions"] == 0:
            return int(row["commits"])
        if time.monotonic() > end:
            raise Unavailable(f"{row['sessions']} sessions are still open; close them before counting commits")
        await asyncio.sleep(_LOOK_SECONDS)


async def settings(server: Server) -> dict[str, str]:
    """Those of the server that decide about figures."""
    names = ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_connections"]
    rows = await fetch(
        server.dsn("postgres", "postgres"), "SELECT name, setting FROM pg_settings WHERE name = ANY($1)", names
    )
    return {row["name"]: row["setting"] for row in rows}
