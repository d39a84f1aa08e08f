"""Where a node keeps its things on this machine.

One node has one home. By default it is `.agentos` in the repository, with `.agentos.env` and `reports/` beside it.
`AGENTOS_HOME` names another one, which then holds all three: several nodes can live side by side, and a test never
touches the developer's own.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# sun_path holds 108 bytes, and the supervisor binds a longer temporary name first.
MAX_SOCKET_PATH_CHARS: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    code: Path
    """The directory that holds our packages."""
    home: Path
    env_file: Path
    reports: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str]) -> "Node":
        code = Path(__file__).resolve().parent.parent
        chosen = environ.get("AGENTOS_HOME", "")
        if chosen:
            home = Path(chosen).expanduser().resolve()
            return cls(code=code, home=home, env_file=home / ".agentos.env", reports=home / "reports")
        # Installed from a wheel there is no repository; the node then belongs to the current directory.
        base = code if (code / "pyproject.toml").exists() else Path.cwd()
        return cls(code=code, home=base / ".agentos", env_file=base / ".agentos.env", reports=base / "reports")

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def gateway_secrets(self) -> Path:
        """Secrets that a stored configuration of the gateway may refer to."""
        return self.home / "gateway-secrets"

    @property
    def exports(self) -> Path:
        """What there was of tenants that left."""
        return self.home / "exports"

    @property
    def audit(self) -> Path:
        """The signed heads of the audit."""
        return self.home / "audit"

    @property
    def lock_file(self) -> Path:
        return self.home / "lock"

    @property
    def supervisor_conf(self) -> Path:
        return self.run_dir / "supervisord.conf"

    @property
    def supervisor_pid(self) -> Path:
        return self.run_dir / "supervisord.pid"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisord.log"

    @property
    def supervisor_socket(self) -> Path:
        preferred = self.run_dir / "supervisor.sock"
        if len(os.fsencode(preferred)) <= MAX_SOCKET_PATH_CHARS:
            return preferred
        return self.short_dir / "supervisor.sock"

    @property
    def short_dir(self) -> Path:
        """Stands in for `run_dir` where its path is too long for a socket."""
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"agentos-{os.getuid()}-{digest}"

    def log_of(self, service: str) -> Path:
        return self.logs / f"{service}.log"

    def secret(self, name: str) -> Path:
        return self.secrets / name

    @property
    def exists(self) -> bool:
        return self.home.is_dir()

    def create(self) -> None:
        """Make the directories, closed to everybody else. Those that exist are closed again."""
        private = [self.home, self.run_dir, self.logs, self.secrets, self.gateway_secrets]
        if self.supervisor_socket.parent != self.run_dir:
            private.append(self.short_dir)
        for directory in private:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            if directory.stat().st_uid != os.getuid():
                raise PermissionError(f"{directory} belongs to another user; choose another AGENTOS_HOME")


def write_private(path: Path, text: str) -> None:
    """Replace `path` at once, readable by its owner only: nobody sees half a file."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
