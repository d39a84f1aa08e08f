"""When keys were used last: no request waits for it, few writes tell it, and what can't be written is told later."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.token_auth.uses import GRAIN, NOTED_EVERY, Uses
from conformance.clock import ManualClock
from ports.errors import Unavailable
from ports.ids import KeyId
from tests.support.tokens import TokenNode, token_node

pytestmark = pytest.mark.anyio

A, B = KeyId("key_a"), KeyId("key_b")


class Notes:
    def __init__(self) -> None:
        self.written: list[dict[KeyId, datetime]] = []
        self.broken = False

    async def keys_used(self, used: Mapping[KeyId, datetime]) -> None:
        if self.broken:
            raise Unavailable("the tenant directory does not answer")
        self.written.append(dict(used))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def uses(notes: Notes) -> Uses:
    return Uses(cast("Any", notes), ManualClock())


async def test_many_uses_of_many_keys_are_one_write(uses: Uses, notes: Notes) -> None:
    for _ in range(1_000):
        uses.note(A)
        uses.note(B)

    await uses.write()
    await uses.write()

    assert [sorted(one) for one in notes.written] == [[A, B]]


async def test_a_key_in_use_is_written_about_once_in_a_while(notes: Notes) -> None:
    clock = ManualClock()
    uses = Uses(cast("Any", notes), clock)
    for _ in range(20):
        uses.note(A)
        await uses.write()
        await clock.advance(GRAIN / 10)

    assert len(notes.written) == 2


async def test_what_can_not_be_written_is_told_with_the_next_use(uses: Uses, notes: Notes) -> None:
    notes.broken = True
    uses.note(A)
    await uses.write()
    notes.broken = False

    uses.note(A)
    await uses.write()

    assert [sorted(one) for one in notes.written] == [[A]]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TokenNode]:
    async with token_node(tmp_path) as opened:
        yield opened


async def test_the_directory_tells_the_use_of_a_key_that_opened_a_door(node: TokenNode) -> None:
    used, stored = await node.api_key()
    refused, unused = await node.api_key(expires_at=node.clock.now() + timedelta(hours=1))
    await node.verifier.verify(used)
    moment = node.clock.now()

    await node.advance(NOTED_EVERY)

    listed = {key.id: key.last_used_at for key in (await node.tenants.list_keys(node.subject, limit=10)).items}
    assert listed == {stored.id: moment, unused.id: None}
    assert refused
