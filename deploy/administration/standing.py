"""Budgets with what is spent, held and left of them; usage by day, model and agent. For the admin API and the commands."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from deploy.administration.wire import BudgetView, UsageLine, window_view
from ports.budget import Budget, BudgetLedger, Spent
from ports.budget_rules import account_of, tokens_per_day
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.request_log import Counted, RequestLog
from ports.tenant import Tenant


def in_tenant(auth: AuthContext, tenant: Tenant) -> AuthContext:
    """The platform, reading what is one tenant's."""
    auth.require(ADMIN_PLATFORM)
    return replace(auth, tenant=tenant.id, scopes=auth.scopes | {"usage:read"})


def has_one_window(budget: Budget, scope_id: str) -> bool:
    return budget.scope == "tenant" or bool(budget.scope_id or scope_id)


async def budgets_of(
    ledger: BudgetLedger, auth: AuthContext, tenant: Tenant, *, scope_id: str = ""
) -> tuple[BudgetView, ...]:
    """`tokens_per_day` first, then the others by id. `scope_id`: whose window, of those that each has for itself."""
    reading = in_tenant(auth, tenant)
    daily = tokens_per_day(tenant.entitlements.tokens_per_day)
    budgets = await ledger.budgets(reading)
    counted = [one for one in budgets if has_one_window(one, scope_id)]
    accounts = [daily, *(account_of(one, "" if one.scope == "tenant" else scope_id) for one in counted)]
    balances = await ledger.standing(reading, accounts)
    windows = {
        account.budget.id: window_view(balance, account.budget.scope_id or account.key.partition(" ")[2])
        for account, balance in zip(accounts, balances, strict=True)
    }
    return tuple(BudgetView(budget=one, window=windows.get(one.id)) for one in (daily.budget, *budgets))


def first_moment(now: datetime, days: int) -> datetime:
    """Where the first of so many days begins, the last of which is today."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)


async def usage_of(
    ledger: BudgetLedger, log: RequestLog, auth: AuthContext, tenant: Tenant, *, since: datetime, by_agent: bool
) -> tuple[UsageLine, ...]:
    reading = in_tenant(auth, tenant)
    spent = await ledger.spent(reading, since=since, by_agent=by_agent)
    if by_agent:
        return tuple(_line(one, agent=one.agent) for one in spent)
    return joined(await log.counted(reading, since=since), spent)


def joined(counted: Iterable[Counted], spent: Sequence[Spent]) -> tuple[UsageLine, ...]:
    """What was asked is the log's to say, what it has cost the ledger's: it has all that was booked, and nothing twice."""
    asked = {(one.day, one.model): one for one in counted}
    paid = {(one.day, one.model): one for one in spent}
    lines: list[UsageLine] = []
    for day, model in sorted(asked.keys() | paid.keys()):
        count = asked.get((day, model))
        sums = paid.get((day, model)) or Spent(
            day=day, model=model, calls=0, prompt_tokens=0, completion_tokens=0, cost_nanousd=0
        )
        line = _line(sums, agent=None)
        lines.append(
            replace(
                line,
                requests=0 if count is None else count.requests,
                denied=0 if count is None else count.denied,
            )
        )
    return tuple(lines)


def _line(spent: Spent, *, agent: str | None) -> UsageLine:
    return UsageLine(
        day=spent.day,
        model=spent.model,
        agent=agent,
        requests=None,
        denied=None,
        calls=spent.calls,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        cost_nanousd=spent.cost_nanousd,
    )
