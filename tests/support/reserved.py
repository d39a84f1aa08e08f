"""A reservation of tokens a day, as a request makes it."""

from datetime import timedelta

from ports.budget import Account, Amount
from ports.context import AuthContext
from stack_b.budget.meter import Meter, Reservation, measured
from stack_b.canonical import NOBODY_KNOWN


class _Reserved(Reservation):
    _about = NOBODY_KNOWN
    _request = ""

    def __init__(
        self, meter: Meter, auth: AuthContext, amount: Amount, on: tuple[Account, ...], lease: timedelta
    ) -> None:
        self._purse, self._balances = meter.purse, meter.balances
        self._auth, self.amount, self._on, self._lease = auth, amount, on, lease


def reserved(meter: Meter, auth: AuthContext, tokens: int, *, limit: int, lease: timedelta) -> Reservation:
    """`tokens` of the tenant's `limit` a day."""
    return _Reserved(meter, auth, Amount(tokens=tokens), measured(limit, ()), lease)
