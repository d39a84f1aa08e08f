"""Before anything is touched: can this machine carry the node, and is the way free?"""

import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import psutil

from deploy.catalogue import Listening, Service
from deploy.config import key_of
from deploy.node import Node
from deploy.processes import holder_of, named, port_is_free, processes_of
from deploy.report import Check

MIN_PYTHON: Final = (3, 11)
# The database, its write-ahead log and the copy of its binaries, with room to work.
MIN_FREE_MIB: Final = 1_024
_MIB: Final = 1024 * 1024
_SYSTEMS: Final = ("linux", "darwin")
_NO_FLAGS: Final[Mapping[str, str]] = {}


def preflight(node: Node, services: Iterable[Service], flags: Mapping[str, str] = _NO_FLAGS) -> list[Check]:
    """Every check, not only the first that fails. `flags` are those of this `up`: what it suggests repeats them."""
    mine = {process.pid for process in processes_of(node)}
    return [
        system_check(sys.platform),
        python_check(sys.version_info[:3]),
        disk_check(node.home, free_mib(node.home)),
        *port_checks(services, mine, flags),
    ]


def system_check(platform: str) -> Check:
    ok = platform in _SYSTEMS
    remedy = "" if ok else "use Linux or macOS; on Windows, the Windows Subsystem for Linux"
    return Check(name="system", part="machine", ok=ok, detail=platform, next_command=remedy)


def python_check(version: tuple[int, ...]) -> Check:
    ok = version[:2] >= MIN_PYTHON
    detail = "Python " + ".".join(map(str, version))
    remedy = "" if ok else "install Python 3.11 or newer, remove .venv, and run ./agentos up again"
    return Check(name="python", part="machine", ok=ok, detail=detail, next_command=remedy)


def disk_check(path: Path, free: int) -> Check:
    ok = free >= MIN_FREE_MIB
    detail = f"{free} MiB free at {path}; {MIN_FREE_MIB} MiB are needed"
    remedy = "" if ok else "free some space, or choose another place: AGENTOS_HOME=/path ./agentos up"
    return Check(name="disk", part="machine", ok=ok, detail=detail, next_command=remedy)


def free_mib(path: Path) -> int:
    """Free space where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // _MIB


def port_checks(services: Iterable[Service], mine: set[int], flags: Mapping[str, str] = _NO_FLAGS) -> list[Check]:
    """A check for every port. Those that fail have the same remedy: one command that moves all of them."""
    found = [(service, port_check(service, mine)) for service in services]
    taken = [service.listens for service, check in found if not check.ok]
    remedy = _moving(taken, avoid={service.listens.number for service, _ in found}, flags=flags)
    return [check if check.ok else msgspec.structs.replace(check, next_command=remedy) for _, check in found]


def port_check(service: Service, mine: set[int]) -> Check:
    """Free, or held by the node's own service from an earlier `up`."""
    began = time.perf_counter()
    listens = service.listens
    if port_is_free(listens.host, listens.number):
        return _port(service, began, ok=True, detail=f"free for {service.name}")
    holder = holder_of(listens.number)
    if holder is not None and _is_or_descends_from(holder, mine):
        return _port(service, began, ok=True, detail=f"held by our own {service.name}")
    who = named(holder) if holder is not None else "another process (it belongs to another user)"
    detail = f"{service.name} needs {listens.host}:{listens.number}, which is held by {who}"
    return _port(service, began, ok=False, detail=detail)


def next_free(host: str, port: int, *, avoid: Collection[int] = ()) -> int:
    """A port nearby that is free, to suggest: ten further first, so that 8080 becomes 8090."""
    candidates = [*range(port + 10, port + 200, 10), *range(20_000, 21_000)]
    fit = (number for number in candidates if number < 65_536 and number not in avoid)  # noqa: PLR2004 - the first that is none
    return next((number for number in fit if port_is_free(host, number)), 0)


def _moving(taken: Iterable[Listening], *, avoid: set[int], flags: Mapping[str, str]) -> str:
    """The `up` that was typed, with another port for each that is taken."""
    moved: dict[str, str] = {}
    for listens in taken:
        number = next_free(listens.host, listens.number, avoid=avoid)
        avoid = avoid | {number}
        moved[listens.field] = str(number)
    words = [word for field, value in {**flags, **moved}.items() for word in _flag(field, value)]
    settings = ", ".join(key_of(field) for field in moved)
    others = "that process; the setting is" if len(moved) == 1 else "those processes; the settings are"
    return f"./agentos up {shlex.join(words)}   (or end {others} {settings})"


def _flag(field: str, value: str) -> tuple[str, ...]:
    """A setting as `up` takes it."""
    name = field.replace("_", "-")
    if name.endswith("-port"):
        return (f"--port-{name.removesuffix('-port')}", value)
    return (f"--{name}",) if value == "true" else (f"--{name}", value)


def _port(service: Service, began: float, *, ok: bool, detail: str) -> Check:
    ms = round((time.perf_counter() - began) * 1_000, 1)
    return Check(name=f"port {service.listens.number}", part=service.name, ok=ok, ms=ms, detail=detail)


def _is_or_descends_from(process: psutil.Process, pids: set[int]) -> bool:
    """PostgreSQL's children and a server's worker processes listen on behalf of the one we started."""
    try:
        return process.pid in pids or any(parent.pid in pids for parent in process.parents())
    except psutil.Error:
        return False
