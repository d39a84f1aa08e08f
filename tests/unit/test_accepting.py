"""Connections that come together, at a loop whose turns are long."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from deploy.roots.accepting import AT_ONCE, Accepting

CLIENTS = 50


class Reached(asyncio.Protocol):
    """A connection that is at its protocol."""

    def __init__(self, reached: list[asyncio.BaseTransport]) -> None:
        self._reached = reached

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._reached.append(transport)


def on_uvloop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 20))


async def serving(reached: list[asyncio.BaseTransport]) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(
        lambda: Reached(reached), "127.0.0.1", 0, backlog=CLIENTS * 2
    )
    return server, server.sockets[0].getsockname()[1]


def arrived(port: int, count: int = CLIENTS) -> list[socket.socket]:
    """That many clients, connected as far as their systems can tell, while the loop does something else."""
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(count)]


async def turns_until(enough: Callable[[], bool]) -> int:
    turns = 0
    while not enough():
        await asyncio.sleep(0)
        turns += 1
    return turns


def let_go(reached: list[asyncio.BaseTransport], clients: list[socket.socket]) -> None:
    for transport in reached:
        transport.close()
    for client in clients:
        client.close()


def test_clients_who_come_together_are_at_their_protocols_within_a_few_turns() -> None:
    async def main() -> None:
        reached: list[asyncio.BaseTransport] = []
        server, port = await serving(reached)
        accepting = Accepting([server.sockets[0].fileno()], lambda: Reached(reached))
        assert CLIENTS < AT_ONCE
        clients = arrived(port)

        turns = await turns_until(lambda: len(reached) == CLIENTS)

        assert turns <= 10
        await accepting.close()
        server.close()
        let_go(reached, clients)

    on_uvloop(main)


def test_without_it_each_takes_a_turn() -> None:
    """Why it is there at all: once the loop's own server does as much, it can go."""

    async def main() -> None:
        reached: list[asyncio.BaseTransport] = []
        server, port = await serving(reached)
        clients = arrived(port)

        turns = await turns_until(lambda: len(reached) == CLIENTS)

        assert turns >= CLIENTS - 1
        server.close()
        let_go(reached, clients)

    on_uvloop(main)


def test_what_was_taken_is_at_its_protocol_when_it_is_closed_and_nothing_comes_after() -> None:
    async def main() -> None:
        reached: list[asyncio.BaseTransport] = []
        server, port = await serving(reached)
        others: list[asyncio.BaseTransport] = []
        accepting = Accepting([server.sockets[0].fileno()], lambda: Reached(others))
        clients = arrived(port)
        await turns_until(lambda: bool(others))

        await accepting.close()
        taken = len(others)
        clients += arrived(port, 3)
        await turns_until(lambda: len(reached) + len(others) == CLIENTS + 3)

        assert len(others) == taken
        # The listener was its owner's all the while.
        assert server.is_serving()
        server.close()
        let_go([*reached, *others], clients)

    on_uvloop(main)


def test_a_client_who_is_gone_already_harms_nobody() -> None:
    async def main() -> None:
        reached: list[asyncio.BaseTransport] = []
        server, port = await serving(reached)
        accepting = Accepting([server.sockets[0].fileno()], lambda: Reached(reached))
        gone = arrived(port, 5)
        for client in gone:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.close()
        clients = arrived(port)

        await turns_until(lambda: sum(not one.is_closing() for one in reached) == CLIENTS)

        await accepting.close()
        server.close()
        let_go(reached, clients)

    on_uvloop(main)
