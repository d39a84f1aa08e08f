"""The process runtime: supervisord keeps the services of the catalogue alive.

supervisord runs as a daemon of its own, from our virtual environment, with a configuration rendered from the catalogue
and a control socket that only its owner can open. Services are started by us, in order, never by supervisord itself;
from then on it restarts what dies, with growing pauses, and rotates the logs.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Collection, Iterable, Mapping
from http.client import HTTPException
from typing import Any, Final

from msgspec import Struct
from supervisor.xmlrpc import Faults, SupervisorTransport, UnixStreamHTTPConnection

from deploy.catalogue import (
    Service,
    base_environment,
    environment_file,
    environment_json,
)
from deploy.credentials import write_if_changed
from deploy.node import Node, write_private
from ports.errors import Unavailable

# Pauses grow by a second each time: an hour and more of trying before supervisord gives up.
START_RETRIES: Final = 100
LOG_MAX_BYTES: Final = 10 * 1024 * 1024
LOG_BACKUPS: Final = 5

_READY_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05


class ServiceState(Struct, frozen=True, kw_only=True):
    name: str
    state: str
    """supervisord's word, in small letters: running, starting, stopped, backoff, exited, fatal."""
    pid: int
    uptime_s: int
    remark: str = ""


class Applied(Struct, frozen=True, kw_only=True):
    """What a new configuration changed; the changed and removed ones are stopped."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def render(node: Node, services: Iterable[Service], *, as_root: bool) -> str:
    """The configuration of supervisord. Pure; what is secret stays in the environment files."""
    sections = [
        _section(
            "supervisord",
            {
                "identifier": "agentos",
                "logfile": str(node.supervisor_log),
                "logfile_maxbytes": str(LOG_MAX_BYTES),
                "logfile_backups": str(LOG_BACKUPS),
                "loglevel": "info",
                "pidfile": str(node.supervisor_pid),
                "childlogdir": str(node.logs),
                "umask": "077",
                "directory": "/",
            }
            | ({"user": "root"} if as_root else {}),
        ),
        _section("unix_http_server", {"file": str(node.supervisor_socket), "chmod": "0700"}),
        _section(
            "rpcinterface:supervisor",
            {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
        *(_program(node, service) for service in services),
    ]
    return "\n".join(sections)


def _program(node: Node, service: Service) -> str:
    settings = {
        "command": shlex.join(_command(node, service)),
        "directory": service.working_directory,
        "autostart": "false",
        "autorestart": "true",
        "startsecs": "1",
        "startretries": str(START_RETRIES),
        "stopsignal": service.stop_signal,
        "stopwaitsecs": str(service.stop_wait_s),
        "redirect_stderr": "true",
        "stdout_logfile": str(node.log_of(service.name)),
        "stdout_logfile_maxbytes": str(LOG_MAX_BYTES),
        "stdout_logfile_backups": str(LOG_BACKUPS),
    }
    if service.os_user is not None:
        settings["user"] = service.os_user
    return _section(f"program:{service.name}", settings)


def _command(node: Node, service: Service) -> list[str]:
    if not service.environment:
        return list(service.command)
    digest = hashlib.sha256(environment_json(service).encode()).hexdigest()[:16]
    launch = [sys.executable, "-m", "deploy.launch", str(environment_file(node, service.name)), digest]
    return [*launch, *service.command]


def _section(name: str, settings: Mapping[str, str]) -> str:
    # A lone % would be read as a placeholder.
    lines = [f"{key} = {value.replace('%', '%%')}" for key, value in settings.items()]
    return "\n".join([f"[{name}]", *lines, ""])


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]  # the package ships no types
    """The package's connection, with a limit to waiting."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.timeout)


class _Transport(SupervisorTransport):  # type: ignore[misc]  # the package ships no types
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__(serverurl=f"unix://{path}")

        def connection() -> _Connection:
            made = _Connection("localhost", timeout=timeout)
            made.socketfile = path
            return made

        self._get_connection = connection


class Supervisor:
    """The daemon of one node, over its socket."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def alive(self) -> bool:
        try:
            self._call("getState", timeout=2.0)
        except (OSError, xmlrpc.client.Error, HTTPException):
            return False
        return True

    def start_daemon(self, services: Iterable[Service], environ: Mapping[str, str]) -> bool:
        """Make sure the daemon runs; True when it had to be started. Starts no service."""
        if self.alive():
            return False
        services = tuple(services)
        self._write(services)
        self._node.supervisor_socket.unlink(missing_ok=True)
        write_private(self._node.supervisor_conf, self._render(services))
        environment = base_environment(self._node, environ) | {
            "PYTHONPATH": str(self._node.code),
            "PYTHONSAFEPATH": "1",
            # supervisord keeps warning about its own use of an old packaging API.
            "PYTHONWARNINGS": "ignore",
        }
        started = subprocess.run(  # noqa: S603 - our own interpreter and paths
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._node.supervisor_conf)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
            timeout=_READY_SECONDS * 3,
        )
        if started.returncode != 0:
            said = (started.stderr or started.stdout).strip().splitlines()
            raise Unavailable(f"supervisord did not start: {said[-1] if said else 'it said nothing'}")
        end = time.monotonic() + _READY_SECONDS
        while not self.alive():
            if time.monotonic() > end:
                raise Unavailable(f"supervisord started but does not answer; see {self._node.supervisor_log}")
            time.sleep(_POLL_SECONDS)
        return True

    def apply(self, services: Iterable[Service], *, spare: Collection[str] = ()) -> Applied:
        """Give the running daemon this catalogue. Changed and removed services are stopped; none is started.

        Those in `spare` go on as they were started, until they are renewed.
        """
        services = tuple(services)
        # A spared one that dies begins again as it was.
        self._write(service for service in services if service.name not in spare)
        # Told in any case: an earlier `up` may have written the file and died before it told the daemon.
        write_if_changed(self._node.supervisor_conf, self._render(services))
        [[added, changed, removed]] = self._call("reloadConfig")
        changed = [name for name in changed if name not in spare]
        for name in (*changed, *removed):
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)
        return Applied(added=tuple(added), changed=tuple(changed), removed=tuple(removed))

    def states(self) -> dict[str, ServiceState]:
        return {info["name"]: _state(info) for info in self._call("getAllProcessInfo", timeout=5.0)}

    def start(self, name: str) -> bool:
        """Ask for the service to be started; False when it runs already. Does not wait until it is healthy."""
        if self._call("getProcessInfo", name)["statename"] in {"RUNNING", "STARTING"}:
            return False
        self._call("startProcess", name, False)
        return True

    def renew(self, service: Service) -> None:
        """Stop the service and start it as the catalogue given last describes it. Does not wait until it is healthy."""
        self._write((service,))
        for method in ("stopProcessGroup", "removeProcessGroup", "addProcessGroup"):
            self._call(method, service.name)
        self._call("startProcess", service.name, False)

    def stop(self, name: str) -> bool:
        """Stop the service and wait until it is gone; False when it did not run, or another stopped it."""
        try:
            self._call("stopProcess", name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.NOT_RUNNING:
                raise
        else:
            return True
        while self._call("getProcessInfo", name)["statename"] == "STOPPING":
            time.sleep(_POLL_SECONDS)
        return False

    def shutdown(self) -> None:
        """End the daemon and everything it runs; returns at once, the caller waits for the processes."""
        self._call("shutdown")

    def _write(self, services: Iterable[Service]) -> None:
        for service in services:
            if service.environment:
                write_if_changed(environment_file(self._node, service.name), environment_json(service))

    def _render(self, services: tuple[Service, ...]) -> str:
        return render(self._node, services, as_root=os.geteuid() == 0)

    def _call(self, method: str, *arguments: object, timeout: float = 60.0) -> Any:
        """One call of supervisord's interface; what it answers depends on the method, so it has no better type."""
        transport = _Transport(str(self._node.supervisor_socket), timeout)
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)


def _state(info: Mapping[str, Any]) -> ServiceState:
    running = info["statename"] == "RUNNING"
    return ServiceState(
        name=info["name"],
        state=info["statename"].lower(),
        pid=info["pid"],
        uptime_s=max(0, info["now"] - info["start"]) if running else 0,
        remark="" if running else _remark(info),
    )


def _remark(info: Mapping[str, Any]) -> str:
    """Why a service does not run, or since when, in the supervisor's words."""
    if info["spawnerr"]:
        return str(info["spawnerr"])
    return (
        f"since {info['description']}"
        if info["statename"] in {"STOPPED", "EXITED"} and info["stop"]
        else info["description"]
    )
