"""Which budgets a request is measured against beside its tenant's tokens a day, and what it may cost at most."""

from collections.abc import Sequence

from msgspec import Struct

from ports.budget import Account, Amount, Budget, BudgetLedger, Scope
from ports.budget_rules import accounts
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import PermissionDenied
from ports.fresh import Fresh
from stack_b.backends.catalog import Candidate
from stack_b.budget.estimate import Ask
from stack_b.budget.slices import output_within
from stack_b.canonical import About


class Plan(Struct, frozen=True, kw_only=True, gc=False):
    also: tuple[Account, ...]
    candidates: tuple[Candidate, ...]
    """Those whose cost can be limited, where it must be."""
    nanousd: int
    """At the dearest of them; 0 where no budget is of money."""
    money: bool = False
    """Whether a budget of money is held."""
    about: About


class Budgets:
    """The tenants' own budgets, a few seconds old at most."""

    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self.fresh = Fresh(ledger.budgets, clock)

    async def of(self, auth: AuthContext) -> tuple[Budget, ...]:
        """Raises `Unavailable` when they must be read and can't (fail closed)."""
        return await self.fresh.of(auth)

    async def close(self) -> None:
        await self.fresh.close()


def planned(
    auth: AuthContext,
    budgets: Sequence[Budget],
    candidates: tuple[Candidate, ...],
    about: About,
    ask: Ask,
    *,
    tier: str,
    name: str = "",
) -> Plan:
    """`tier` is the tier or model that was asked for, by the name `name`, which may be an alias of it.

    Raises:
        PermissionDenied: a budget limits money, and no candidate has a price.
    """
    if not budgets:
        return Plan(also=(), candidates=candidates, nanousd=0, about=about)
    scopes: dict[Scope, str] = {
        "key": auth.principal,
        "agent": about.agent,
        "session": about.session,
        "tier": tier,
    }
    also = accounts(0, budgets, scopes, alias=name)[1:]
    money = [account for account in also if account.budget.unit == "nanousd"]
    if any(account.budget.mode == "hard" for account in money):
        candidates = tuple(one for one in candidates if one.card.price is not None)
        if not candidates:
            raise PermissionDenied(
                "the model has no price, and a budget of this tenant limits what calls cost; ask for another model, or the "
                "operator of this node for a price",
                code="model_not_entitled",
            )
    prompt, completion = ask.prompt_bound, ask.amount - ask.prompt_bound
    prices = [one.card.price for one in candidates if one.card.price is not None] if money else []
    nanousd = max((price.most_nanousd(prompt, completion) for price in prices), default=0)
    return Plan(also=also, candidates=candidates, nanousd=nanousd, money=bool(money), about=about)


def tokens_that_fit(plan: Plan, ask: Ask, *, limit: int) -> int:
    """The `max_tokens` with which a request could fit into all of its hard budgets, if nothing else were spent or held.

    `limit` is that of the tenant's tokens a day.
    """
    hard = [account.budget for account in plan.also if account.budget.mode == "hard"]
    room = Amount(tokens=min([limit, *(one.limit for one in hard if one.unit == "tokens")]))
    outputs = [output_within(room, None, ask.prompt_bound)]
    money = [one.limit for one in hard if one.unit == "nanousd"]
    if money:
        room = Amount(tokens=room.tokens, nanousd=min(money))
        outputs += [output_within(room, one.card.price, ask.prompt_bound) for one in plan.candidates]
    return max(0, min(outputs) // ask.choices)
