"""A real node of the test's own: its home, its ports, its command line. Never the developer's."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import msgspec

from deploy import credentials, plain_http
from deploy.cli.main import main
from deploy.client import RunsClient
from deploy.credentials import Tokens
from deploy.node import Node
from deploy.report import Report
from deploy.supervision import Supervisor
from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("stack-a", "stack-b", "worker", "admin", "postgres")


class NodeUnderTest:
    def __init__(self, home: Path) -> None:
        self.environ = {**_clean(os.environ), "AGENTOS_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        self.node = Node.locate(self.environ)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.supervisor = Supervisor(self.node)

    def agentos(self, *arguments: str, timeout: float = 300.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with `stdin` to read. Whoever means a time says it; the usual one ends what hangs."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", *arguments],
            env=self.environ,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            input=stdin,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As `agentos`, but in this process: to load the modules of a command again is dearer than most commands.

        Not for those whose own process matters: because they start others, or run beside a load that is here.
        """
        out, err = io.StringIO(), io.StringIO()
        with ThreadPoolExecutor(1) as thread, redirect_stdout(out), redirect_stderr(err):
            # A thread of its own, as a command brings its own event loop.
            code = thread.submit(self._main, arguments, out, err).result()
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def _main(self, arguments: tuple[str, ...], out: io.StringIO, err: io.StringIO) -> int:
        try:
            return main(arguments, out=out, err=err, environ=self.environ)
        except SystemExit as wrong:
            # The arguments were.
            return int(str(wrong.code))

    def up(self, *more: str) -> Report:
        """`up --json`, which must end well."""
        flags = [word for name, port in self.ports.items() for word in (f"--port-{name}", str(port))]
        done = self.agentos("up", *flags, *more, "--json")
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout, type=Report)

    @property
    def stack_a(self) -> str:
        return f"http://127.0.0.1:{self.ports['stack-a']}"

    @property
    def stack_b(self) -> str:
        return f"http://127.0.0.1:{self.ports['stack-b']}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.ports['admin']}"

    def tokens(self) -> Tokens:
        tokens = credentials.load_tokens(self.node)
        assert tokens is not None, "the node is not seeded"
        return tokens

    def app_key(self) -> str:
        return self.tokens().keys["app"].api_key

    def client(self, token: str | None = None) -> RunsClient:
        return RunsClient(self.stack_a, self.app_key() if token is None else token)

    def pids(self) -> dict[str, int]:
        return {name: state.pid for name, state in self.supervisor.states().items()}

    def get(self, url: str, token: str) -> httpx.Response:
        return plain_http.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10)

    def report(self, action: str) -> dict[str, Any]:
        """The newest report of an action, as a machine reads it."""
        newest = max(self.node.reports.glob(f"{action}-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return msgspec.json.decode(newest.read_bytes(), type=dict[str, Any])


@contextmanager
def running_node(home: Path) -> Iterator[NodeUnderTest]:
    """Up; and gone afterwards, which must work whatever was done to it."""
    node = NodeUnderTest(home)
    try:
        node.up()
        yield node
    finally:
        gone = node.agentos("nuke", "--hard", "--yes-really")
        assert gone.returncode == 0, gone.stderr


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what would make a test depend on the developer's shell."""
    return {name: value for name, value in environ.items() if not name.startswith(("AGENTOS_", "OPENAI_"))}
