"""BudgetLedger: hard budgets that hold under concurrency. Integers only; a window is a row keyed by its start.

The unit is the token (prompt plus completion), the window the UTC day, the scope the tenant. Further units, windows and
scopes are rows of the same shape.

Clauses (each has a test in `conformance.budget`):

* BUD-1  `reserve` succeeds only if settled plus held plus the amount stays within the limit, whatever else happens at the
         same time; a hundred callers at the limit get exactly what fits.
* BUD-2  `settle` replaces the hold by what was spent, exactly once: settling again changes nothing. Spending more than was
         held is recorded in full.
* BUD-3  Refusals are three: `budget_exceeded` (settled spend leaves no room), `budget_in_flight` (room is held by others;
         `retry_after` set), `request_exceeds_budget` (the amount alone can never fit; `max_tokens_that_fits` in details).
* BUD-4  A hold that was neither settled nor extended when its lease ended counts as spent in full.
* BUD-5  A tenant's holds and spending never touch another's; another's hold raises `NotFound`.
* BUD-6  A new window starts empty without anybody resetting it.
* BUD-7  What was settled and held is there for a ledger opened anew on the same storage.
"""

from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.ids import HoldId


class Hold(Struct, frozen=True, kw_only=True):
    id: HoldId
    amount: int
    expires_at: datetime


class Balance(Struct, frozen=True, kw_only=True):
    limit: int
    settled: int
    held: int
    window_start: datetime
    window_end: datetime

    @property
    def free(self) -> int:
        return max(0, self.limit - self.settled - self.held)


class BudgetLedger(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        """Hold `amount` of the tenant's current window, whose limit is `limit`, for at most `lease`.

        Raises:
            InvalidArgument: `request_exceeds_budget`, or an amount below 1.
            ResourceExhausted: `budget_exceeded`, `budget_in_flight`.
        """
        ...

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None: ...

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance: ...
