"""Has a tenant the budget for the sample run? If not, that is what to tell: no service is to blame."""

from datetime import datetime
from typing import Final, Literal, TypeAlias, get_args

import httpx
import msgspec
from msgspec import Struct

from deploy.plain_http import NOBODY_TRUSTED
from ports.agent import AgentLimits

Lack: TypeAlias = Literal["budget_exceeded", "budget_in_flight", "request_exceeds_budget"]
CODES: Final[frozenset[str]] = frozenset(get_args(Lack))
"""What a run that lacks budget ends with."""

_ANSWER_SECONDS: Final = 5.0
_OK: Final = 200
_ENOUGH: Final = 1_000_000
"""Tokens a day that do for a demo."""


class BudgetView(Struct, frozen=True, kw_only=True):
    """A tenant's budget of the day, and what one call of the sample run would take of it."""

    limit: int
    settled: int
    held: int
    window_end: datetime
    would_hold: int


class _Verdict(Struct, frozen=True, kw_only=True):
    budget: BudgetView


class NoBudget(Exception):
    """The sample run can't be made for want of budget; the text says how much there is of what."""

    def __init__(self, text: str, *, next_command: str) -> None:
        super().__init__(text)
        self.next_command = next_command


def read_budget(gateway: str, api_key: str, *, model: str, question: str) -> BudgetView | None:
    """What the gateway's own check says; None where it doesn't, and then the sample run shows why.

    A lower bound: the agent adds its instructions and tools to the question.
    """
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": AgentLimits().max_completion_tokens,
    }
    try:
        answer = httpx.post(
            f"{gateway}/v1/policy/check",
            json=asked,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=_ANSWER_SECONDS,
            trust_env=False,
            verify=NOBODY_TRUSTED,
        )
        return msgspec.json.decode(answer.content, type=_Verdict).budget if answer.status_code == _OK else None
    except (httpx.HTTPError, msgspec.DecodeError):
        return None


def lack_of(budget: BudgetView) -> Lack | None:
    """What stands in the way of one call of the sample run; None when there is room."""
    if budget.would_hold > budget.limit:
        return "request_exceeds_budget"
    if budget.settled + budget.would_hold > budget.limit:
        return "budget_exceeded"
    if budget.settled + budget.held + budget.would_hold > budget.limit:
        return "budget_in_flight"
    return None


def no_budget(tenant: str, lack: str, budget: BudgetView | None, message: str = "") -> NoBudget:
    """`lack` for the operator: which budget, how it stands, and when or with what to go on.

    `message` is what a run that failed for it said; it serves where the gateway can't be asked for the numbers.
    """
    whose = f"the token budget of {tenant} "
    stands = message
    renewed = "at 00:00 UTC"
    if budget is not None:
        stands = (
            f"of {budget.limit:,} tokens a UTC day, {budget.settled:,} are spent and {budget.held:,} are held by calls at "
            f"work; one call of the sample run takes {budget.would_hold:,} or more"
        )
        renewed = f"at {budget.window_end:%Y-%m-%d %H:%M} UTC"
    if lack == "budget_in_flight":
        return NoBudget(
            f"{whose}is held by other calls ({lack}): {stands}",
            next_command="./agentos validate   (when they have ended; what was cut off counts as spent within 30 s)",
        )
    if lack == "request_exceeds_budget":
        return NoBudget(
            f"{whose}is too small for the sample run ({lack}): {stands}",
            next_command=f"./agentos tenant quota {tenant} --tokens-per-day {_ENOUGH}",
        )
    more = f"./agentos tenant quota {tenant} --tokens-per-day {2 * budget.limit if budget else _ENOUGH}"
    return NoBudget(
        f"{whose}is spent ({lack}): {stands}",
        next_command=f"./agentos validate   (after it starts anew {renewed}; to go on today: {more})",
    )
