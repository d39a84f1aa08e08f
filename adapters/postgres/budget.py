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
from ports.budget_rules import WINDOW, check_amount, check_spent, refusal
from ports.context import AuthContext
from ports.errors import NotFound
from ports.ids import HoldId, TenantId, minted, uuid_of

_SQL: Final = load("budget")


class BudgetCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresBudget:
    """Satisfies `BudgetLedger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        check_amount(amount, limit)
        asked = {"tenant": auth.tenant, "amount": amount, "limit": limit, "lease": positive(lease)}
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["lapse"], {"tenant": auth.tenant})
            row = await transaction.row(_SQL["reserve"], asked)
            balance = None if row is not None else await _balance(transaction, auth.tenant, limit)
        if row is None:
            assert balance is not None, "read where there was no room"
            raise refusal(balance, amount)
        return Hold(id=HoldId(minted("hld", row["id"])), amount=row["amount"], expires_at=row["expires_at"])

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        check_spent(spent)
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


@asynccontextmanager
async def open_budget(config: PostgresConfig, _given: Given) -> AsyncIterator[BudgetLedger]:
    async with open_database(config) as database:
        yield PostgresBudget(database)


SPEC: Final[AdapterSpec[PostgresConfig, BudgetLedger]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: BudgetCapabilities(), open=open_budget
)
