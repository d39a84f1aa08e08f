"""Whether a request can have its hold at all, asked before anything dear is done for it. Pure."""

from ports.budget import Amount, Balance
from ports.budget_rules import Standing, check_accounts, refusal, tokens_per_day
from stack_b.budget.estimate import Ask


def check_room(balance: Balance, ask: Ask, *, idle: int) -> None:
    """Raises like `BudgetLedger.reserve`, for what is held of it whatever becomes of its texts: redaction shortens them.

    `idle`: what is counted as held, and is for requests to come.
    """
    account = tokens_per_day(balance.limit)
    least = Amount(tokens=ask.amount - ask.prompt_bound + 1)
    check_accounts(least, (account,))
    standing = Standing(
        account=account, settled=balance.settled, held=balance.held - idle, window_end=balance.window_end
    )
    if (refused := refusal((standing,), least)) is not None:
        raise refused
