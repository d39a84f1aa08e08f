"""One read for all who want the same at the same moment."""

import asyncio
import uuid

import anyio
import pytest

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import store
from adapters.system_clock import SystemClock
from conformance.people import ACME
from ports.budget import Balance, Budget
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable
from ports.shared_reads import SharedReads
from stack_b.budget.balances import Balances
from stack_b.budget.plan import Budgets
from stack_b.entitlement import TenantCache
from tests.support.stack_b import CALLERS, stack_b

pytestmark = pytest.mark.anyio


class Slow(InprocBudget):
    """Counts its reads, each of which takes a moment."""

    def __init__(self) -> None:
        super().__init__(store(uuid.uuid4().hex), SystemClock())
        self.reads = 0

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        await self._moment()
        return await super().balance(auth, limit=limit)

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        await self._moment()
        return await super().budgets(auth)

    async def _moment(self) -> None:
        self.reads += 1
        await asyncio.sleep(0)


async def test_many_requests_ask_for_a_balance_once() -> None:
    ledger = Slow()
    balances = Balances(ledger, SystemClock())

    found = await asyncio.gather(*(balances.current(ACME, limit=1_000) for _ in range(50)))

    assert ledger.reads == 1
    assert {balance.limit for balance in found} == {1_000}


async def test_balances_under_another_limit_are_another_read() -> None:
    ledger = Slow()
    balances = Balances(ledger, SystemClock())

    found = await asyncio.gather(*(balances.current(ACME, limit=limit) for limit in (1_000, 2_000)))

    assert [balance.limit for balance in found] == [1_000, 2_000]


async def test_and_for_budgets_once() -> None:
    ledger = Slow()
    budgets = Budgets(ledger, SystemClock())

    await asyncio.gather(*(budgets.of(ACME) for _ in range(50)))

    assert ledger.reads == 1


async def test_and_for_their_tenant_once() -> None:
    async with stack_b() as node:
        reads = 0
        directory = node.deps.tenant

        class Counting:
            async def get(self, *asked: object) -> object:
                nonlocal reads
                reads += 1
                await asyncio.sleep(0)
                return await directory.get(*asked)  # type: ignore[arg-type]

        cache = TenantCache(Counting(), SystemClock())  # type: ignore[arg-type]
        await asyncio.gather(*(cache.tenant(CALLERS["acme"]) for _ in range(50)))

    assert reads == 1


async def test_a_failure_is_everybodys_own() -> None:
    shared: SharedReads[str, int] = SharedReads()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise Unavailable("away")

    found = await asyncio.gather(*(shared.of("a", fail) for _ in range(3)), return_exceptions=True)

    assert all(isinstance(error, Unavailable) and error.message == "away" for error in found)
    assert len({id(error) for error in found}) == 3


async def test_whoever_leaves_takes_nothing_from_the_others() -> None:
    shared: SharedReads[str, int] = SharedReads()
    gate = anyio.Event()

    async def read() -> int:
        await gate.wait()
        return 7

    first, second = (asyncio.create_task(shared.of("a", read)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    gate.set()

    with anyio.fail_after(5):
        assert await second == 7
    with pytest.raises(AgentOSError):
        await shared.of("a", _refused)


async def _refused() -> int:
    raise Unavailable("anew")
