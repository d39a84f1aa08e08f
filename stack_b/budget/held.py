"""What one request holds of its budgets, which may grow while it is at work, and what it has consumed of that."""

from datetime import timedelta

from ports.budget import Account, Amount
from ports.context import AuthContext
from stack_b.budget.balances import Balances
from stack_b.budget.chunks import Chunk
from stack_b.budget.over import over
from stack_b.budget.purse import Purse, Taken
from stack_b.budget.spending import Spending


class Held(Spending):
    """Of one request at a time; not shared. Whoever holds it says so: `meter.Reservation`."""

    chunk: Chunk
    amount: Amount
    """Of `chunk`."""
    _auth: AuthContext
    _on: tuple[Account, ...]
    _lease: timedelta
    _purse: Purse
    _balances: Balances

    @property
    def over(self) -> tuple[str, ...]:
        """Soft budgets that are beyond their limits with what was used."""
        chunk = self.chunk
        return over(chunk.left, chunk.spent.plus(self.used)) if chunk.left else ()

    async def grow(self, more: Amount) -> None:
        """Hold `more` as well. One at a time.

        Raises:
            ResourceExhausted, Unavailable: the ledger's refusals; what was held stays so.
        """
        taken = await self._purse.grow(Taken(self.chunk, self.amount), more, self._on, self._lease)
        self.amount = taken.amount
        self._balances.held(self._auth.tenant, more.tokens)
