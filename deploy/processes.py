"""Which processes belong to a node, and who holds a port."""

import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Final

import psutil

from deploy import embedded_postgres
from deploy.catalogue import OWNER_MARK, layout_of
from deploy.node import Node

_POLITE_SECONDS: Final = 10.0
_FORCED_SECONDS: Final = 5.0


def processes_of(node: Node) -> list[psutil.Process]:
    """Every living process that this node started, whoever is its parent by now. Never the caller."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        # Gone meanwhile, or another user's: then it is not ours, or it is PostgreSQL, which is looked up below.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(OWNER_MARK) == str(node.home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    server = embedded_postgres.server_process(layout_of(node))
    if server is not None and server not in found:
        found.append(server)
    return found


def end(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Ask each to end, then insist; what still lives is returned."""
    waiting = list(processes)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, waiting = psutil.wait_procs(waiting, timeout=_POLITE_SECONDS)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _, waiting = psutil.wait_procs(waiting, timeout=_FORCED_SECONDS)
    return waiting


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the services do: a port whose last connections are still winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> psutil.Process | None:
    """The process that listens on `port`; None when nobody does, or when it is hidden from us."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.pid and tuple(connection.laddr)[1:] == (port,):
            with contextlib.suppress(psutil.Error):
                return psutil.Process(connection.pid)
    return None


def named(process: psutil.Process) -> str:
    """A process in words a person can act on: name, id, and the start of its command."""
    try:
        command = " ".join(process.cmdline())
        name = process.name()
    except psutil.Error:
        return f"process {process.pid}"
    shown = command if len(command) <= 80 else command[:79] + "…"  # noqa: PLR2004 - the width of a terminal
    return f"{name} (pid {process.pid}: {shown})" if shown else f"{name} (pid {process.pid})"
