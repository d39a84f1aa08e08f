"""What `/v1/policy/check` answers: the decisions that a call would meet, by the very stages it would pass."""

from msgspec import Struct
from msgspec.structs import replace

from ports.budget import Amount, BudgetLedger
from ports.context import AuthContext
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.tenant import Tenant
from stack_b.backends.catalog import Candidate
from stack_b.budget.balances import Balances
from stack_b.budget.estimate import Ask, capable, embed_ask
from stack_b.budget.meter import Meter
from stack_b.budget.plan import Plan
from stack_b.canonical import ChatCall, EmbedCall, said, texts_in
from stack_b.inspection.inspector import Inspector
from stack_b.prepare import Preparation, embedding
from stack_b.receipt import budget_members
from stack_b.redaction.findings import Finding


class Verdict(Struct, frozen=True, kw_only=True):
    """The decisions a call would meet, and nothing changed."""

    policy_outcome: PolicyOutcome
    findings: tuple[Finding, ...]
    refusal: str | None
    """The code of the error that a call would be refused with by policy."""
    budget: dict[str, Json]


class Check:
    """Calls nobody and changes no row."""

    def __init__(
        self, prepare: Preparation, ledger: BudgetLedger, balances: Balances, meter: Meter, inspector: Inspector
    ) -> None:
        self._prepare = prepare
        self._ledger = ledger
        self._balances = balances
        self._meter = meter
        self._inspector = inspector

    async def of(self, auth: AuthContext, call: ChatCall | EmbedCall) -> Verdict:
        """What `chat` or `embed` would decide."""
        prepare = self._prepare
        asked, members = prepare.route_asked(call), said(call) if isinstance(call, ChatCall) else embedding(call)
        tenant, entitled = await prepare.entitled(auth, asked)
        dear = await prepare.dear(auth, call, members)
        ruled = await prepare.ruled(auth, tenant, call, members, entitled, dear=dear)
        if ruled.blocked is not None:
            return await self._blocked(auth, tenant, ruled.blocked, (), ruled.refusal.code)
        rules = prepare.rules(tenant)
        decision = await self._inspector.decide(auth, members, rules, texts_in(call, members), dear=dear)
        if decision.outcome.decision == "blocked":
            return await self._blocked(auth, tenant, decision.outcome, decision.findings, "policy_blocked")
        candidates = ruled.candidates
        balance = await self._balances.read(auth, limit=tenant.entitlements.tokens_per_day)
        if isinstance(call, ChatCall):
            candidates = capable(call, candidates)
        ask = self._would_ask(call, decision.value, candidates)
        plan = await prepare.planned(auth, call, candidates, ask, rules)
        fits = ask.amount <= balance.free + self._meter.idle(auth.tenant) and await self._fits(auth, ask, plan)
        return Verdict(
            policy_outcome=decision.outcome,
            findings=decision.findings,
            refusal=None,
            budget={**budget_members(balance), "would_hold": ask.amount, "fits": fits},
        )

    async def _blocked(
        self, auth: AuthContext, tenant: Tenant, outcome: PolicyOutcome, findings: tuple[Finding, ...], refusal: str
    ) -> Verdict:
        """What is refused holds nothing."""
        balance = await self._balances.read(auth, limit=tenant.entitlements.tokens_per_day)
        return Verdict(
            policy_outcome=outcome,
            findings=findings,
            refusal=refusal,
            budget={**budget_members(balance), "would_hold": 0, "fits": True},
        )

    def _would_ask(self, call: ChatCall | EmbedCall, value: Json, candidates: tuple[Candidate, ...]) -> Ask:
        if isinstance(call, EmbedCall):
            return embed_ask(replace(call, inputs=tuple(value["input"])))
        return self._prepare.asked(replace(call, members=value), candidates)

    async def _fits(self, auth: AuthContext, ask: Ask, plan: Plan) -> bool:
        """Whether the tenant's own hard budgets have room."""
        if not plan.also:
            return True
        amount = Amount(tokens=ask.amount, nanousd=plan.nanousd)
        balances = zip(plan.also, await self._ledger.standing(auth, plan.also), strict=True)
        return all(
            account.budget.mode != "hard"
            or amount.of(account.budget.unit)
            <= balance.free + self._meter.idle(auth.tenant, account.key, account.budget.unit)
            for account, balance in balances
        )
