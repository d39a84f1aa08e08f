"""Taking a node away: first say what, then do it, then prove that it is gone."""

import shutil
import time
from pathlib import Path
from typing import Final

import psutil

from deploy import embedded_postgres
from deploy.action import Failed, Recorder
from deploy.catalogue import layout_of
from deploy.node import Node
from deploy.processes import end, named, processes_of
from deploy.report import Check
from deploy.supervision import Supervisor

# The slowest service may take 30 s to stop; supervisord stops them one after another where it must.
_STOP_SECONDS: Final = 75.0
_POLL_SECONDS: Final = 0.1


def removable(node: Node, *, hard: bool) -> list[Path]:
    """What `nuke` would delete, of what is there now. Reports are never among it."""
    paths = [node.run_dir, node.short_dir]
    if hard:
        kept = {node.reports}
        inside = [path for path in node.home.iterdir() if path not in kept] if node.home.is_dir() else []
        paths = [node.short_dir, layout_of(node).state, node.env_file, *inside]
    return sorted({path for path in paths if path.exists()})


def plan(node: Node, *, hard: bool) -> list[str]:
    """The same in words, processes included."""
    lines = [f"stop {named(process)}" for process in processes_of(node)]
    lines += [f"remove {path}{_meaning(node, path)}" for path in removable(node, hard=hard)]
    return lines


def stop_everything(recorder: Recorder, supervisor: Supervisor) -> None:
    """Services first, gently, through their supervisor; then whatever is left."""
    with recorder.phase("stop") as notes:
        living = processes_of(recorder.node)
        notes.changed = bool(living)
        if supervisor.alive():
            recorder.progress.milestone(f"stopping {len(living)} processes")
            supervisor.shutdown()
            end_at = time.monotonic() + _STOP_SECONDS
            while processes_of(recorder.node) and time.monotonic() < end_at:
                time.sleep(_POLL_SECONDS)
        embedded_postgres.stop(layout_of(recorder.node))
        stubborn = end(processes_of(recorder.node))
        if stubborn:
            raise Failed(_left("processes", ", ".join(named(process) for process in stubborn)))
        notes.summary = f"{len(living)} processes ended" if living else "nothing was running"


def remove(recorder: Recorder, *, hard: bool) -> None:
    node = recorder.node
    with recorder.phase("remove") as notes:
        paths = removable(node, hard=hard)
        if hard:
            # It knows what root keeps outside of the home.
            embedded_postgres.destroy(layout_of(node))
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=False)
            else:
                path.unlink(missing_ok=True)
            recorder.progress.milestone(f"removed {path}")
        notes.changed = bool(paths)
        notes.summary = ", ".join(str(path) for path in paths) or "nothing was there"


def verify(recorder: Recorder, *, hard: bool) -> None:
    """Look again, from outside: processes, listening sockets, files."""
    node = recorder.node
    with recorder.phase("verify") as notes:
        living = processes_of(node)
        recorder.check(
            Check(
                name="no process is left",
                part="processes",
                ok=not living,
                detail=", ".join(named(process) for process in living) or "none",
                next_command="./agentos nuke --yes-really" if living else "",
            )
        )
        sockets = _sockets_below(node.home) + _sockets_below(node.short_dir)
        recorder.check(
            Check(name="no socket is left", part="sockets", ok=not sockets, detail=", ".join(sockets) or "none")
        )
        files = [str(path) for path in removable(node, hard=hard)]
        recorder.check(Check(name="no file is left", part="files", ok=not files, detail=", ".join(files) or "none"))
        if not recorder.ok:
            raise Failed(next(check for check in recorder.checks if not check.ok))
        notes.summary = (
            "no process, socket or data is left" if hard else "no process or socket is left; the data is kept"
        )


def remove_empty_home(node: Node) -> None:
    """The home itself, unless the reports live in it; after the last lock on it was let go."""
    if node.home.is_dir() and not any(node.home.iterdir()):
        node.home.rmdir()


def _sockets_below(directory: Path) -> list[str]:
    """UNIX sockets that somebody still listens on below `directory`."""
    try:
        paths = [str(connection.laddr) for connection in psutil.net_connections(kind="unix") if connection.laddr]
    except psutil.AccessDenied:
        paths = [str(path) for path in directory.rglob("*") if path.is_socket()]
    return sorted({path for path in paths if path.startswith(f"{directory}/")})


def _meaning(node: Node, path: Path) -> str:
    known = {
        node.secrets: " (passwords, keys, tokens)",
        node.gateway_secrets: " (what you put there for the gateway)",
        node.logs: " (logs)",
        node.run_dir: " (sockets and generated configuration)",
        node.env_file: " (your settings)",
        layout_of(node).state: " (the database: EVERY TENANT'S DATA)",
    }
    return known.get(path, "")


def _left(part: str, detail: str) -> Check:
    return Check(name=f"no {part} left", part=part, ok=False, detail=detail, next_command="./agentos nuke --yes-really")
