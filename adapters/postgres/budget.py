"""BudgetLedger over PostgreSQL: a conditional update of the window's row, which is exact under any concurrency."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.rows import positive
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.budget import Balance, BudgetLedger, Hold
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, ResourceExhausted
from ports.ids import HoldId, TenantId, minted, uuid_of

_SQL: Final = load("budget")
WINDOW: Final = timedelta(days=1)
_RETRY_AFTER: Final = timedelta(seconds=2)
"""Room held by others is given back when their calls end, which takes seconds."""


class BudgetCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresBudget:
    """Satisfies `BudgetLedger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        if amount < 1:
            raise InvalidArgument(f"at least 1 token must be reserved, not {amount}")
        if amount > limit:
            raise InvalidArgument(
                f"{amount} tokens can never fit into a budget of {limit}; ask for fewer",
                code="request_exceeds_budget",
                details={"max_tokens_that_fits": limit},
            )
        asked = {"tenant": auth.tenant, "amount": amount, "limit": limit, "lease": positive(lease)}
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["lapse"], {"tenant": auth.tenant})
            row = await transaction.row(_SQL["reserve"], asked)
            balance = None if row is not None else await _balance(transaction, auth.tenant, limit)
        if row is None:
            assert balance is not None, "read where there was no room"
            raise _refusal(balance, amount)
        return Hold(id=HoldId(minted("hld", row["id"])), amount=row["amount"], expires_at=row["expires_at"])

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        if spent < 0:
            raise InvalidArgument(f"{spent} tokens can't have been spent")
        asked = {"tenant": auth.tenant, "hold": uuid_of("hld", hold) or uuid.UUID(int=0), "spent": spent}
        async with self._database.transaction(auth.tenant) as transaction:
            if await transaction.row(_SQL["settle"], asked) is None:
                raise NotFound(f"there is no hold {hold!r}")

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        async with self._database.transaction(auth.tenant) as transaction:
            return await _balance(transaction, auth.tenant, limit)


async def _balance(transaction: Transaction, tenant: TenantId, limit: int) -> Balance:
    row = await transaction.row(_SQL["balance"], {"tenant": tenant})
    assert row is not None, "the statement always answers"
    start = row["window_start"]
    return Balance(limit=limit, settled=row["settled"], held=row["held"], window_start=start, window_end=start + WINDOW)


def _refusal(balance: Balance, amount: int) -> ResourceExhausted:
    if balance.settled + amount > balance.limit:
        return ResourceExhausted(
            f"{balance.settled} of {balance.limit} tokens are spent, {amount} more do not fit before "
            f"{balance.window_end}",
            code="budget_exceeded",
        )
    return ResourceExhausted(
        f"{balance.held} of {balance.limit} tokens are held by calls at work; try again in a moment",
        code="budget_in_flight",
        retry_after=_RETRY_AFTER,
    )


@asynccontextmanager
async def open_budget(config: PostgresConfig, _given: Given) -> AsyncIterator[BudgetLedger]:
    async with open_database(config) as database:
        yield PostgresBudget(database)


SPEC: Final[AdapterSpec[PostgresConfig, BudgetLedger]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: BudgetCapabilities(), open=open_budget
)
