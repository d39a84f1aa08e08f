"""What the runtime promises of the processes it keeps, shown with a real daemon."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from deploy.action import Failed, Recorder
from deploy.bring_up import wait_healthy
from deploy.catalogue import HttpReady, Listening, Resources, Service
from deploy.config import Config
from deploy.node import Node
from deploy.supervision import Supervisor
from tests.support.cli import Silent
from tests.support.ports import free_port

STUBBORN: Final = """
import pathlib, signal, sys
began, leave = map(pathlib.Path, sys.argv[1:])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
began.touch()
while not leave.exists():
    signal.sigtimedwait({signal.SIGTERM}, 0.02)
"""
"""Ends when it is let, and no sooner."""
SLOW: Final = """
import http.server, pathlib, signal, sys
died, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
if not died.exists():
    died.touch()
    sys.exit(1)
signal.sigtimedwait([], 6)

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""
"""Dies at once the first time; the second time it takes its time."""


@pytest.fixture
def began(tmp_path: Path) -> Path:
    return tmp_path / "began"


@pytest.fixture
def leave(tmp_path: Path) -> Path:
    return tmp_path / "leave"


@pytest.fixture
def supervisor(tmp_path: Path, began: Path, leave: Path) -> Iterator[Supervisor]:
    node = Node.locate({"AGENTOS_HOME": str(tmp_path / "home")})
    node.create()
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    supervisor = Supervisor(node)
    supervisor.start_daemon(
        [
            Service(
                name="stubborn",
                title="ends when it is let",
                command=(sys.executable, str(script), str(began), str(leave)),
                environment={},
                listens=Listening(field="", host="127.0.0.1", number=0),
                health=HttpReady(url=""),
                resources=Resources(memory_mib=16, cpu_millis=100),
            )
        ],
        {},
    )
    try:
        yield supervisor
    finally:
        leave.touch()
        supervisor.shutdown()
        wait_until(lambda: not supervisor.alive())


def wait_until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def state(supervisor: Supervisor) -> str:
    return supervisor.states()["stubborn"].state


def test_who_stops_what_another_is_stopping_waits_until_it_is_gone(
    supervisor: Supervisor, began: Path, leave: Path
) -> None:
    assert supervisor.start("stubborn")
    wait_until(began.exists)
    with ThreadPoolExecutor() as others:
        first = others.submit(supervisor.stop, "stubborn")
        wait_until(lambda: state(supervisor) == "stopping")
        second = others.submit(supervisor.stop, "stubborn")
        assert not second.done()
        leave.touch()
        stopped = (first.result(30), second.result(30))

    assert stopped == (True, False)
    assert state(supervisor) == "stopped"
    assert supervisor.stop("stubborn") is False


def waited_for(home: Path, command: tuple[str, ...], port: int, *, patience_s: float) -> None:
    """Raises `Failed` where the service is given up."""
    node = Node.locate({"AGENTOS_HOME": str(home)})
    node.create()
    service = Service(
        name="brief",
        title="dies",
        command=command,
        environment={},
        listens=Listening(field="", host="127.0.0.1", number=port),
        health=HttpReady(url=f"http://127.0.0.1:{port}/readyz"),
        resources=Resources(memory_mib=16, cpu_millis=100),
    )
    supervisor = Supervisor(node)
    supervisor.start_daemon([service], {})
    try:
        supervisor.start(service.name)
        wait_healthy(Recorder("up", node, Config(), Silent()), (service,), supervisor, seconds=patience_s)
    finally:
        supervisor.shutdown()
        wait_until(lambda: not supervisor.alive())


def test_who_keeps_dying_is_not_waited_for_also_where_it_lives_long_enough_to_count_as_started(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import signal; signal.sigtimedwait([], 1.3)")
    patience_s = 30.0
    began = time.monotonic()
    with pytest.raises(Failed):
        waited_for(tmp_path / "home", command, free_port(), patience_s=patience_s)

    assert time.monotonic() - began < patience_s


def test_who_has_died_once_and_takes_long_to_begin_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.bring_up._CRASHING_SECONDS", 4.0)
    script, died, port = tmp_path / "slow.py", tmp_path / "died", free_port()
    script.write_text(SLOW)

    waited_for(tmp_path / "home", (sys.executable, str(script), str(died), str(port)), port, patience_s=30)

    assert died.exists()
