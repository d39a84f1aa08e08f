"""`STREAM_PIECE`: a piece of a stream is on the wire at once, the same bytes as by ASGI's way; or it is not sent at all."""

import asyncio
import logging
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from deploy.roots.http_cycle import Cycle

pytestmark = pytest.mark.anyio


class Wire:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False


class Owner:
    """As the server's protocol is one."""

    def __init__(self, wire: Wire, flow: FlowControl) -> None:
        self.transport = wire
        self.flow = flow
        self.logger = logging.getLogger("test")
        self.server_state = ServerState()

    def on_response_complete(self) -> None:
        pass

    def go_on(self, _: Cycle) -> None:
        pass


async def begun(method: str = "GET") -> tuple[Cycle, Wire, FlowControl]:
    wire = Wire()
    flow = FlowControl(cast("asyncio.Transport", wire))
    scope: Any = {"type": "http", "method": method, "path": "/"}
    cycle = Cycle(scope, Owner(wire, flow), False, True)
    await cycle.send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    wire.written.clear()
    return cycle, wire, flow


async def test_it_is_what_asgi_sends() -> None:
    quick, wire, _ = await begun()
    usual, other, _ = await begun()

    assert [quick.piece(b"one", False), quick.piece(b"", False), quick.piece(b"two", True)] == [True] * 3
    for body, more in ((b"one", True), (b"", True), (b"two", False)):
        await usual.send({"type": "http.response.body", "body": body, "more_body": more})

    assert b"".join(wire.written) == b"".join(other.written) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert quick.response_complete


async def test_nothing_is_sent_to_who_is_slow_or_gone_or_has_it_all() -> None:
    slow, slow_wire, flow = await begun()
    gone, gone_wire, _ = await begun()
    over, over_wire, _ = await begun()
    head, head_wire, _ = await begun("HEAD")
    flow.pause_writing()
    gone.disconnected = True
    assert over.piece(b"all", True)
    over_wire.written.clear()

    assert [one.piece(b"more", True) for one in (slow, gone, over, head)] == [False] * 4
    assert not [*slow_wire.written, *gone_wire.written, *over_wire.written, *head_wire.written]
