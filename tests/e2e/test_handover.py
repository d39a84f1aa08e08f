"""One server process follows another at the same address, and no client notices."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx
import psutil
import pytest

from deploy.handover import inherited, keeper
from tests.support.node import ROOT
from tests.support.ports import free_ports

pytestmark = pytest.mark.anyio


class Place:
    """An address, its door, and the processes that serve there."""

    def __init__(self, path: Path) -> None:
        self.door = path / "door"
        self.ready = path / "ready"
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def served(self, word: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "tests.support.small_server", str(self.port), str(self.door), word, *more]
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            try:
                yield process
            finally:
                process.kill()

    def kept_by(self, process: subprocess.Popen[bytes]) -> bool:
        who = keeper(self.door)
        return who is not None and who.pid == process.pid


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def until(true: Callable[[], bool]) -> None:
    """Poll another process, bounded."""
    with anyio.fail_after(20):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.02)


def listens(process: subprocess.Popen[bytes]) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in psutil.Process(process.pid).net_connections("tcp"))


class Clients:
    """Some that keep their connections and some that don't; any error of theirs ends the test."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[str] = []

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            for keep in (None, None, 0, 0):
                group.start_soon(self._ask, httpx.Limits(max_keepalive_connections=keep))
            yield
            group.cancel_scope.cancel()

    async def _ask(self, limits: httpx.Limits) -> None:
        async with httpx.AsyncClient(base_url=self._url, limits=limits, trust_env=False) as client:
            while True:
                answer = await client.get("/")
                assert answer.status_code == 200
                self.answers.append(answer.text.partition(" ")[0])


async def test_clients_are_served_without_a_gap_while_one_process_follows_another(place: Place) -> None:
    clients = Clients(place.url)
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))
        async with clients.asking():
            await until(lambda: len(clients.answers) > 50)
            with place.served("new") as new:
                await until(lambda: place.kept_by(new))
                old.terminate()
                await until(lambda: old.poll() is not None)
                told = len(clients.answers)
                await until(lambda: len(clients.answers) > told + 50)

    assert old.returncode == 0
    assert set(clients.answers[:told]) >= {"old"}
    assert set(clients.answers[told + 4 :]) == {"new"}


async def test_a_connection_that_is_idle_when_its_server_leaves_is_answered_once_more_and_then_closed(
    place: Place,
) -> None:
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))
        async with httpx.AsyncClient(base_url=place.url, trust_env=False) as client:
            before = await client.get("/")
            with place.served("new") as new:
                await until(lambda: place.kept_by(new))
                old.terminate()
                await until(lambda: not listens(old))
                last, after = await client.get("/"), await client.get("/")

    assert before.text == last.text == f"old {old.pid}"
    assert "connection" not in before.headers
    assert last.headers["connection"] == "close"
    assert after.text == f"new {new.pid}"


async def test_a_request_that_takes_long_is_answered_by_the_one_who_leaves(place: Place) -> None:
    slow: list[httpx.Response] = []
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))
        async with httpx.AsyncClient(base_url=place.url, trust_env=False) as client, anyio.create_task_group() as group:
            # A connection of the old one's, which the slow request then takes.
            await client.get("/")
            with place.served("new") as new:
                await until(lambda: place.kept_by(new))

                async def ask() -> None:
                    slow.append(await client.get("/slow"))

                group.start_soon(ask)
                old.terminate()
                await until(lambda: not listens(old))
                answered_before_it_left = bool(slow)
                await until(lambda: bool(slow))

    assert not answered_before_it_left
    assert [answer.text for answer in slow] == [f"old {old.pid}"]


async def test_a_successor_accepts_only_once_it_is_ready(place: Place) -> None:
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))
        with place.served("new", str(place.ready)) as new:
            async with httpx.AsyncClient(base_url=place.url, trust_env=False) as client:
                # As long as it would take to start, several times.
                with anyio.move_on_after(2):
                    while not place.kept_by(new):
                        assert (await client.get("/")).text == f"old {old.pid}"
                        await anyio.sleep(0.02)
                assert place.kept_by(old)
                place.ready.touch()
                await until(lambda: place.kept_by(new))


async def test_a_server_that_was_killed_leaves_a_door_that_nobody_opens_and_the_next_one_listens_itself(
    place: Place,
) -> None:
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))
        old.kill()
        await until(lambda: old.poll() is not None)

        assert place.door.exists()
        assert keeper(place.door) is None
        with place.served("new") as new:
            await until(lambda: place.kept_by(new))


async def test_sockets_of_another_address_are_not_inherited(place: Place) -> None:
    with place.served("old") as old:
        await until(lambda: place.kept_by(old))

        mine = inherited(place.door, host="127.0.0.1", port=place.port)
        another = inherited(place.door, host="127.0.0.1", port=place.port + 1)

        assert [one.getsockname() for one in mine] == [("127.0.0.1", place.port)]
        assert [os.get_inheritable(one.fileno()) for one in mine] == [False]
        assert another == []
        for one in mine:
            one.close()


def test_no_door_is_no_keeper(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert keeper(tmp_path / "absent") is None
    assert keeper(tmp_path / "file") is None


async def test_one_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.handover._ANSWER_S", 0.1)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "door"))
        hanging.listen()

        assert keeper(tmp_path / "door") is None
