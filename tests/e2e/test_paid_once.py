"""A model call is paid once (promise E10), whoever is killed: real processes, PostgreSQL, and a provider that counts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import asyncpg
import pytest

from conformance.people import ACME
from ports.errors import AgentOSError
from ports.model import ChatReply, ChatRequest, Message
from tests.support.ports import free_ports
from tests.support.real_stacks import MODEL_ID, TOKENS_PER_CALL, RealStacks, real_stacks

pytestmark = [pytest.mark.anyio]

MANY: Final = 12
"""Steps at once."""


@pytest.fixture
async def stacks(tmp_path: Path) -> AsyncIterator[RealStacks]:
    async with real_stacks(tmp_path, free_ports(2)) as made:
        await made.gateway.start()
        yield made


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: other processes don't tell."""
    with anyio.fail_after(30):
        while not await true():  # noqa: ASYNC110 - what is asked is another process
            await anyio.sleep(0.02)


async def called(stacks: RealStacks, count: int) -> None:
    async def reached() -> bool:
        return stacks.provider.total >= count

    await until(reached)


def asking(key: str) -> ChatRequest:
    message = Message(role="user", content=f"about {key}")
    return ChatRequest(model=MODEL_ID, messages=(message,), max_tokens=100, step_key=key)


@asynccontextmanager
async def locked_journal(stacks: RealStacks) -> AsyncIterator[None]:
    """Nothing can be written to the journal meanwhile."""
    connection = await asyncpg.connect(stacks.database.superuser)
    try:
        await connection.execute("BEGIN; LOCK TABLE agentos.model_replies IN EXCLUSIVE MODE")
        yield
    finally:
        await connection.close()


async def asked(stacks: RealStacks, keys: list[str]) -> dict[str, ChatReply]:
    """One reply for each key, all asked for at once; what failed is missing."""
    replies: dict[str, ChatReply] = {}

    async def ask(key: str) -> None:
        try:
            replies[key] = await stacks.model.chat(ACME, asking(key))
        except AgentOSError:
            return

    async with anyio.create_task_group() as group:
        for key in keys:
            group.start_soon(ask, key)
    return replies


@pytest.mark.parametrize("moment", ["while the provider thinks", "after the provider answered"])
async def test_runs_whose_worker_is_killed_pay_each_model_call_once(stacks: RealStacks, moment: str) -> None:
    runs = [await stacks.created(f"question {n}") for n in range(MANY)]
    await stacks.worker.start()
    await called(stacks, MANY)

    if moment == "after the provider answered":
        # Stopped, so that it is killed before it can record a single answer.
        stacks.worker.pause()
    else:
        await stacks.worker.kill()
    stacks.provider.let_go.set()

    async def all_journaled() -> bool:
        return await stacks.journaled() == MANY

    await until(all_journaled)
    if moment == "after the provider answered":
        await stacks.worker.kill()
    recorded_before = [(await stacks.run(run_id)).status for run_id in runs]

    async def nothing_held() -> bool:
        return (await stacks.spent())[1] == 0

    # The gateway gives back what it does not need; else its lease would lapse too, although it lives.
    await until(nothing_held)
    await stacks.let_leases_lapse()
    await stacks.worker.start()

    async def all_ended() -> bool:
        return {(await stacks.run(run_id)).status for run_id in runs} == {"succeeded"}

    await until(all_ended)
    ended = [await stacks.run(run_id) for run_id in runs]
    assert set(recorded_before) == {"running"}
    assert set(stacks.provider.calls.values()) == {1}
    assert stacks.provider.total == MANY
    assert [(run.recoveries, run.usage.total_tokens) for run in ended] == [(1, TOKENS_PER_CALL)] * MANY
    assert await stacks.spent() == (MANY * TOKENS_PER_CALL, 0)


async def test_a_gateway_killed_before_it_journaled_pays_at_most_twice_and_says_so(stacks: RealStacks) -> None:
    keys = [f"run_1:{n}" for n in range(MANY)]
    async with anyio.create_task_group() as group:
        group.start_soon(asked, stacks, keys)
        await called(stacks, MANY)
        async with locked_journal(stacks):
            stacks.provider.let_go.set()

            async def all_paid() -> bool:
                return await stacks.spent() == (MANY * TOKENS_PER_CALL, 0)

            await until(all_paid)
            await stacks.gateway.kill()
        lost = await stacks.journaled()
    await stacks.let_leases_lapse()
    await stacks.gateway.start()

    second, third = await asked(stacks, keys), await asked(stacks, keys)

    assert lost == 0
    assert set(stacks.provider.calls.values()) == {2}
    assert [(second[key].route.replayed, second[key].route.possible_duplicate) for key in keys] == [
        (False, True)
    ] * MANY
    assert [third[key].route.replayed for key in keys] == [True] * MANY
    assert [third[key].usage for key in keys] == [second[key].usage for key in keys]


async def test_a_gateway_that_is_stopped_finishes_the_calls_whose_client_left(stacks: RealStacks) -> None:
    keys = [f"run_1:{n}" for n in range(MANY)]
    async with anyio.create_task_group() as group:
        group.start_soon(asked, stacks, keys)
        await called(stacks, MANY)
        group.cancel_scope.cancel()

    stacks.gateway.terminate()
    await anyio.sleep(0.3)
    stacks.provider.let_go.set()
    code = await stacks.gateway.ended()
    await stacks.gateway.start()
    replies = await asked(stacks, keys)

    assert code == 0
    assert stacks.provider.left == 0
    assert set(stacks.provider.calls.values()) == {1}
    assert {reply.route.replayed for reply in replies.values()} == {True}
    assert len(replies) == MANY


async def test_cancelling_a_run_ends_its_model_call_at_the_provider(stacks: RealStacks) -> None:
    run_id = await stacks.created("never mind")
    await stacks.worker.start()
    await called(stacks, 1)

    await stacks.runs.cancel(ACME, run_id, reason="changed my mind")

    async def over() -> bool:
        return stacks.provider.left == 1 and (await stacks.run(run_id)).status == "cancelled"

    await until(over)

    async def given_back() -> bool:
        return (await stacks.spent())[1] == 0

    await until(given_back)
    assert stacks.provider.total == 1
    assert await stacks.journaled() == 0
