"""What one request holds of its budgets, which may grow while it is at work."""

from datetime import timedelta

from ports.budget import Account, Amount
from ports.context import AuthContext
from stack_b.budget.balances import Balances
from stack_b.budget.purse import Purse, Taken


class Held:
    """Of one request at a time; not shared."""

    __slots__ = ("_auth", "_balances", "_lease", "_on", "_purse", "_taken")

    def __init__(
        self,
        auth: AuthContext,
        taken: Taken,
        *,
        on: tuple[Account, ...],
        lease: timedelta,
        purse: Purse,
        balances: Balances,
    ) -> None:
        self._auth = auth
        self._taken = taken
        self._on = on
        self._lease = lease
        self._purse = purse
        self._balances = balances

    @property
    def amount(self) -> Amount:
        return self._taken.amount

    @property
    def taken(self) -> Taken:
        return self._taken

    async def grow(self, more: Amount) -> None:
        """Hold `more` as well. One at a time.

        Raises:
            ResourceExhausted, Unavailable: the ledger's refusals; what was held stays so.
        """
        self._taken = await self._purse.grow(self._taken, more, self._on, self._lease)
        self._balances.held(self._auth.tenant, more.tokens)
