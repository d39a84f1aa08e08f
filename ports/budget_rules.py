"""What a budget refuses, and in which words: the rules of BudgetLedger that need no store, shared by its adapters."""

from datetime import timedelta
from typing import Final

from ports.budget import Balance
from ports.errors import InvalidArgument, ResourceExhausted

WINDOW: Final = timedelta(days=1)
RETRY_AFTER: Final = timedelta(seconds=2)
"""Room held by others is given back when their calls end, which takes seconds."""


def check_amount(amount: int, limit: int) -> None:
    """Raise `InvalidArgument` for an amount that no window of this limit could ever hold."""
    if amount < 1:
        raise InvalidArgument(f"at least 1 token must be reserved, not {amount}")
    if amount > limit:
        raise InvalidArgument(
            f"{amount} tokens can never fit into a budget of {limit}; ask for fewer",
            code="request_exceeds_budget",
            details={"max_tokens_that_fits": limit},
        )


def check_spent(spent: int) -> None:
    if spent < 0:
        raise InvalidArgument(f"{spent} tokens can't have been spent")


def fits(balance: Balance, amount: int) -> bool:
    return balance.settled + balance.held + amount <= balance.limit


def refusal(balance: Balance, amount: int) -> ResourceExhausted:
    """Why `amount` did not fit; `balance` may be from a moment later."""
    if balance.settled + amount > balance.limit:
        return ResourceExhausted(
            f"{balance.settled} of {balance.limit} tokens are spent, {amount} more do not fit before "
            f"{balance.window_end}",
            code="budget_exceeded",
        )
    return ResourceExhausted(
        f"{balance.held} of {balance.limit} tokens are held by calls at work; try again in a moment",
        code="budget_in_flight",
        retry_after=RETRY_AFTER,
    )
