"""Texts that are looked through where everybody waits: each tenant has its turn, however many another one sends."""

import asyncio
from typing import Final

import pytest

from adapters.regex_pii import RegexPii
from conformance.people import ACME
from ports.context import AuthContext
from ports.pii import Span
from stack_b.inspection.turns import Turns
from tests.support.stack_b import stack_b

pytestmark = pytest.mark.anyio

MANY: Final = 20
PROSE: Final = "the quick brown fox jumps over it and " * 1_400
"""Just not dear."""


class Rounds(RegexPii):
    """Notes in which round of the loop whose long texts were looked through."""

    def __init__(self) -> None:
        self.now = 0
        self.looked: set[tuple[int, str, str]] = set()

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        if len(text) >= len(PROSE):
            self.looked.add((self.now, auth.tenant, text))
        return await super().detect(auth, text)

    async def count(self) -> None:
        while True:
            self.now += 1
            # A round of the loop.
            await asyncio.sleep(0)


async def test_of_a_tenants_many_long_texts_a_round_of_the_loop_has_one() -> None:
    rounds = Rounds()
    async with stack_b(limit=100_000_000, pii=rounds) as node:
        counting = asyncio.create_task(rounds.count())

        async def asked(who: str, number: int) -> int:
            said = [{"role": "user", "content": f"{number} {PROSE}"}]
            return (await node.post("/v1/policy/check", {"model": "agentos-demo", "messages": said}, who)).status_code

        answers = await asyncio.gather(*(asked(who, number) for number in range(MANY) for who in ("acme", "globex")))
        counting.cancel()

    assert answers == [200] * 2 * MANY
    at_once = [(now, tenant) for now, tenant, _ in rounds.looked]
    assert len(at_once) >= 2 * MANY
    assert len(set(at_once)) == len(at_once)


async def test_who_leaves_has_no_turn_and_the_next_one_has() -> None:
    turns, had = Turns(), list[int]()

    async def take(number: int) -> None:
        await turns.take(ACME.tenant)
        had.append(number)

    waiting = [asyncio.create_task(take(number)) for number in range(4)]
    # All have begun: one has its turn, three wait.
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    assert had == [0, 2, 3]
    await take(4)
    assert had[-1] == 4
