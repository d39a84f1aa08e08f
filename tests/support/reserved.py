"""A reservation of tokens a day, as a request makes it."""

from datetime import timedelta

from ports.budget import Amount
from ports.context import AuthContext
from stack_b.budget.meter import Meter, Reservation, measured
from stack_b.canonical import NOBODY_KNOWN


def reserved(meter: Meter, auth: AuthContext, tokens: int, *, limit: int, lease: timedelta) -> Reservation:
    """`tokens` of the tenant's `limit` a day."""
    on = measured(limit, ())
    return Reservation(meter, auth, Amount(tokens=tokens), on=on, lease=lease, about=NOBODY_KNOWN, request="")
