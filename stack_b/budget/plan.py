"""Which budgets a request is measured against beside its tenant's tokens a day, and what it may cost at most."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ports.budget import MAX_SCOPE_ID_CHARS, Account, Budget, BudgetLedger, Scope
from ports.budget_rules import accounts
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import InvalidArgument, PermissionDenied
from ports.messages import Json
from stack_b.backends.catalog import Candidate
from stack_b.budget.estimate import Ask
from stack_b.budget.meter import About
from stack_b.fresh import Fresh

_NOTHING_KNOWN: Final = About()


class Plan(Struct, frozen=True, kw_only=True):
    also: tuple[Account, ...]
    candidates: tuple[Candidate, ...]
    """Those whose cost can be limited, where it must be."""
    nanousd: int
    """At the dearest of them; 0 where no budget is of money."""
    about: About


class Budgets:
    """The tenants' own budgets, a few seconds old at most."""

    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self._fresh = Fresh(ledger.budgets, clock)

    async def of(self, auth: AuthContext) -> tuple[Budget, ...]:
        """Raises `Unavailable` when they must be read and can't (fail closed)."""
        return await self._fresh.of(auth)

    async def close(self) -> None:
        await self._fresh.close()


def planned(
    auth: AuthContext,
    budgets: Sequence[Budget],
    candidates: tuple[Candidate, ...],
    members: dict[str, Json],
    ask: Ask,
    *,
    tier: str,
) -> Plan:
    """`tier` is the name that was asked for: an alias, a tier or a model.

    Raises:
        PermissionDenied: a budget limits money, and no candidate has a price.
    """
    about = _about(members)
    if not budgets:
        return Plan(also=(), candidates=candidates, nanousd=0, about=about)
    scopes: dict[Scope, str] = {
        "key": auth.principal,
        "agent": about.agent,
        "session": about.session,
        "tier": tier,
    }
    also = accounts(0, budgets, scopes)[1:]
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
    return Plan(also=also, candidates=candidates, nanousd=nanousd, about=about)


def _about(members: dict[str, Json]) -> About:
    """What a client says of itself in `metadata`; whoever counts by it trusts its own clients."""
    told = members.get("metadata")
    if not isinstance(told, dict):
        return _NOTHING_KNOWN
    return About(agent=_name(told, "agent_id"), session=_name(told, "session_id"))


def _name(told: dict[str, Json], member: str) -> str:
    name = told.get(member)
    if not isinstance(name, str):
        return ""
    if len(name) > MAX_SCOPE_ID_CHARS:
        raise InvalidArgument(
            f"{member} is longer than {MAX_SCOPE_ID_CHARS} characters",
            code="validation_failed",
            details={"path": f"$.metadata.{member}"},
        )
    return name
