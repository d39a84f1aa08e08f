"""Everything that is decided before a request costs anything: entitlement → policy → redact → what its budgets must hold.

The stages one by one are what `/v1/policy/check` asks too, so that it decides as a call does.
"""

from functools import lru_cache, partial
from typing import TypeAlias

import msgspec
from msgspec import Struct

from ports.context import AuthContext
from ports.errors import PermissionDenied
from ports.messages import Json
from ports.tenant import Tenant
from stack_b.backends.catalog import Candidate
from stack_b.budget.balances import Balances
from stack_b.budget.estimate import (
    Ask,
    all_capable,
    capable,
    chat_ask,
    check_thoughts,
    embed_ask,
    most_of,
    most_written,
    sliced,
)
from stack_b.budget.meter import Meter
from stack_b.budget.plan import Budgets, Plan, planned
from stack_b.budget.room import check_room
from stack_b.budget.slices import cuttable
from stack_b.caller import Caller
from stack_b.canonical import NOBODY_KNOWN, ChatCall, EmbedCall, encoded, said, sent, texts_in
from stack_b.deps import StackBDeps
from stack_b.entitlement import TenantCache
from stack_b.inspection.effort import NEVER_DEAR
from stack_b.inspection.inspector import Inspector
from stack_b.kept_texts import texts_to_keep
from stack_b.policies.answer import Guarded
from stack_b.policies.desk import Ruled, ruled
from stack_b.policy import ALLOWED, NOTHING_UNDONE, Decision, clear, clear_at_hand, enforce, named
from stack_b.receipt import Trail
from stack_b.redaction.answer import Answer
from stack_b.redaction.cache import Remembering
from stack_b.redaction.rules import PiiRules, TenantRules
from stack_b.redaction.stream import Lens
from stack_b.redaction.weight import check_weight, weight_of_plain
from stack_b.routing.router import Asked, conversation_of
from stack_b.tell import Tell

_Simply: TypeAlias = tuple[Tenant, Asked, tuple[Candidate, ...], tuple[str, ...], PiiRules]


class Ready(Struct, frozen=True, kw_only=True):
    """A request that may be called, once its budget is held."""

    auth: AuthContext
    asked: Asked
    candidates: tuple[Candidate, ...]
    body: dict[str, Json]
    ask: Ask
    plan: Plan
    limit: int
    sent_bytes: int
    answer: Answer | Guarded
    """How what comes back is shown."""
    caller: Caller


class Preparation:
    """Holds no state of a request."""

    def __init__(
        self,
        deps: StackBDeps,
        tell: Tell,
        tenants: TenantCache,
        pii: Remembering,
        *,
        inspector: Inspector,
        balances: Balances,
        meter: Meter,
    ) -> None:
        self._clock = deps.clock
        self._prices = deps.prices
        self._limits = deps.limits
        self._tell = tell
        self._tenants = tenants
        self._router = deps.router
        self._policies = deps.policies
        self._pii = pii
        self._inspector = inspector
        self._balances = balances
        self._meter = meter
        self._pii_rules = TenantRules(deps.placeholder_key)
        self._budgets = Budgets(deps.budget, deps.clock)

    async def close(self) -> None:
        await self._budgets.close()

    async def chat(self, auth: AuthContext, call: ChatCall, trail: Trail, caller: Caller) -> Ready:
        """Raises `PermissionDenied` for what may not be asked, and `InvalidArgument` for what can't be."""
        simply = self._simply(auth, call)
        if simply is not None:
            self._tenants.counted(simply[0])
            texts, rules = simply[3:]
            if clear_at_hand(self._pii, auth, texts, rules) or await clear(self._pii, auth, texts, rules):
                return self._simple(auth, call, simply, trail, caller)
        asked = self.route_asked(call)
        tenant, entitled = await self.entitled(auth, asked, counted=simply is not None)
        members = said(call)
        dear = await self.dear(auth, call, members)
        if dear:
            await self._affordable(auth, tenant, self.asked(call, capable(call, entitled)))
        ruled = self._permitted(await self.ruled(auth, tenant, call, members, entitled, dear=dear), trail)
        rules = self.rules(tenant)
        decision = await self.inspected(auth, members, rules, trail, texts_in(call, members), dear=dear)
        value: dict[str, Json] = decision.value
        trail.texts = texts_to_keep(tenant.entitlements, value)
        if value is not call.members:
            call = msgspec.structs.replace(call, members=value)
        candidates = capable(call, ruled.candidates)
        ask = self.asked(call, candidates)
        plan = await self.planned(auth, call, candidates, ask, rules)
        told = sent(call, value)
        told = {**told, "n": call.choices} if call.choices > 1 else told
        return Ready(
            auth=auth,
            asked=asked,
            candidates=plan.candidates,
            body=encoded(told, ask.body) if told is value else told,
            ask=ask,
            plan=plan,
            limit=tenant.entitlements.tokens_per_day,
            sent_bytes=len(ask.body) if told is value else len(msgspec.json.encode(told)),
            answer=ruled.guarded(self._answer(auth, rules, decision)),
            caller=caller,
        )

    def at_hand(self, auth: AuthContext, call: ChatCall, trail: Trail, caller: Caller) -> tuple[Ready, Tenant] | None:
        """What `chat` would give of it, and its tenant, to be `counted`: where nothing is to be waited for, nor kept."""
        simply = self._simply(auth, call)
        if simply is None or simply[0].entitlements.store_prompts is not None or not self._tenants.has_room(simply[0]):
            return None
        if not clear_at_hand(self._pii, auth, *simply[3:]):
            return None
        return self._simple(auth, call, simply, trail, caller), simply[0]

    def _simply(self, auth: AuthContext, call: ChatCall) -> _Simply | None:
        """Of a plain request of which nothing but its texts is left to decide, as mostly: what `chat` would find of it, its
        tenant not counted yet, its texts and the rules for them. None for any other, and where something is waited for."""
        texts = texts_in(call, call.members)
        if texts is None or call.choices > 1 or call.preference != "quality":
            return None
        tenant, budgets = self._tenants.known(auth), self._budgets.fresh.at_hand(auth)
        if tenant is None or budgets is None or call.about is not NOBODY_KNOWN or self._router.spreads:
            return None
        entitlements = tenant.entitlements
        if budgets[0] or entitlements.policy.rules or not self._policies.of(tenant).is_empty:
            return None
        weight = weight_of_plain(call.members, texts)
        if weight > NEVER_DEAR or weight > self._limits.inspected_chars:
            return None
        asked = _simply_asked(call.model)
        priced = self._prices.at(self._clock.now)
        candidates = self._router.candidates(auth, asked, entitlements, priced)
        if not candidates or not all_capable(call, candidates):
            return None
        return tenant, asked, candidates, texts, self.rules(tenant)

    def _simple(
        self,
        auth: AuthContext,
        call: ChatCall,
        simply: _Simply,
        trail: Trail,
        caller: Caller,
    ) -> Ready:
        """Of a request in which there is nothing to take out."""
        tenant, asked, candidates, _, rules = simply
        ask = self.asked(call, candidates)
        trail.outcome = ALLOWED
        trail.texts = texts_to_keep(tenant.entitlements, call.members)
        return Ready(
            auth=auth,
            asked=asked,
            candidates=candidates,
            body=encoded(call.members, ask.body),
            ask=ask,
            plan=Plan(also=(), candidates=candidates, nanousd=0, about=NOBODY_KNOWN),
            limit=tenant.entitlements.tokens_per_day,
            sent_bytes=len(ask.body),
            answer=Answer(Lens(self._pii, auth, rules, NOTHING_UNDONE)),
            caller=caller,
        )

    async def embed(self, auth: AuthContext, call: EmbedCall, trail: Trail, caller: Caller) -> Ready:
        """Raises like `chat`."""
        asked = self.route_asked(call)
        tenant, entitled = await self.entitled(auth, asked)
        members = embedding(call)
        dear = await self.dear(auth, call, members)
        if dear:
            await self._affordable(auth, tenant, embed_ask(call))
        ruled = await self.ruled(auth, tenant, call, members, entitled, dear=dear)
        candidates = self._permitted(ruled, trail).candidates
        rules = self.rules(tenant)
        decision = await self.inspected(auth, members, rules, trail, dear=dear)
        value = decision.value
        trail.texts = texts_to_keep(tenant.entitlements, value)
        redacted = msgspec.structs.replace(call, inputs=tuple(value["input"]))
        ask = embed_ask(redacted)
        plan = await self.planned(auth, call, candidates, ask, rules)
        return Ready(
            auth=auth,
            asked=asked,
            candidates=plan.candidates,
            body={**value, "encoding_format": call.encoding},
            ask=ask,
            plan=plan,
            limit=tenant.entitlements.tokens_per_day,
            sent_bytes=sum(len(text.encode()) for text in redacted.inputs),
            answer=self._answer(auth, rules, decision),
            caller=caller,
        )

    async def again(self, auth: AuthContext, call: ChatCall | EmbedCall, trail: Trail) -> Ruled:
        """What of it must hold when its answer is there already: all but budgets. Raises like `chat`."""
        members = said(call) if isinstance(call, ChatCall) else embedding(call)
        tenant, entitled = await self.entitled(auth, self.route_asked(call), counted=True)
        dear = await self.dear(auth, call, members)
        permitted = self._permitted(await self.ruled(auth, tenant, call, members, entitled, dear=dear), trail)
        await self.inspected(auth, members, self.rules(tenant), trail, texts_in(call, members), dear=dear)
        return permitted

    # The stages, in their order.

    def route_asked(self, call: ChatCall | EmbedCall) -> Asked:
        if isinstance(call, EmbedCall):
            return Asked(name=call.model, kind="embed", preference=call.preference, extra=call.extra)
        conversation = conversation_of(call.members) if self._router.spreads else ""
        return Asked(
            name=call.model,
            kind="chat",
            preference=call.preference,
            agent=call.about.agent,
            conversation=conversation,
            extra=call.extra,
        )

    async def entitled(
        self, auth: AuthContext, asked: Asked, *, counted: bool = False
    ) -> tuple[Tenant, tuple[Candidate, ...]]:
        """`counted`: the request is, already."""
        tenant = self._tenants.served_at_hand(auth) if counted else self._tenants.at_hand(auth)
        if tenant is None:
            # After a pause nothing is known of either: they are asked for at the same time, not one after the other.
            self._budgets.fresh.ahead(auth)
            tenant = await (self._tenants.served(auth) if counted else self._tenants.tenant(auth))
        priced = self._prices.at(self._clock.now)
        candidates = self._router.candidates(auth, asked, tenant.entitlements, priced)
        if not candidates:
            # The same words whether it isn't served or isn't theirs.
            raise PermissionDenied(
                f"this tenant has no {asked.kind} model of the name it asked for; GET /v1/models lists what it may use",
                code="model_not_entitled",
            )
        return tenant, self._router.taking(asked.extra, candidates) if asked.extra else candidates

    async def dear(self, auth: AuthContext, call: ChatCall | EmbedCall, members: dict[str, Json]) -> bool:
        """Whether it is looked through in another process. Raises `InvalidArgument` for what is too long to look at."""
        weight = check_weight(members, self._limits.inspected_chars, texts_in(call, members))
        return await self._inspector.looks_elsewhere(auth, members, weight)

    async def _affordable(self, auth: AuthContext, tenant: Tenant, ask: Ask) -> None:
        """Looking through long texts costs something too: raises like the hold to come, where it can't be had anyway."""
        limit = tenant.entitlements.tokens_per_day
        check_room(await self._balances.read(auth, limit=limit), ask, idle=self._meter.idle(auth.tenant))

    async def ruled(
        self,
        auth: AuthContext,
        tenant: Tenant,
        call: ChatCall | EmbedCall,
        members: dict[str, Json],
        candidates: tuple[Candidate, ...],
        *,
        dear: bool,
    ) -> Ruled:
        """Which of them the policies permit; changes nothing."""
        rules = self._policies.of(tenant)
        if rules.is_empty:
            return Ruled(candidates=candidates)

        def may_write(candidate: Candidate) -> int:
            return most_written(call, self._limits, candidate.card.max_tokens) if isinstance(call, ChatCall) else 0

        decision = partial(
            ruled,
            rules,
            auth,
            members,
            candidates,
            agent=call.about.agent,
            tier=self._router.tier(call.model),
            may_write=may_write,
        )
        if dear and rules.reads_requests:
            return await self._inspector.ruled(auth, members, decision)
        return decision()

    def _permitted(self, ruled: Ruled, trail: Trail) -> Ruled:
        if not ruled.candidates:
            trail.outcome = ruled.blocked
            raise ruled.refusal
        return ruled

    async def inspected(
        self,
        auth: AuthContext,
        members: dict[str, Json],
        rules: PiiRules,
        trail: Trail,
        texts: tuple[str, ...] | None = None,
        *,
        dear: bool,
    ) -> Decision:
        decision = await self._inspector.decide(auth, members, rules, texts, dear=dear)
        trail.outcome = decision.outcome
        if decision.findings:
            self._tell.decided(decision.findings)
            enforce(decision)
        return decision

    def rules(self, tenant: Tenant) -> PiiRules:
        return self._pii_rules.of(tenant.id, tenant.entitlements.pii)

    def asked(self, call: ChatCall, candidates: tuple[Candidate, ...]) -> Ask:
        """Raises `InvalidArgument` for more thoughts than it holds."""
        most = most_of(candidates) if call.max_tokens is None else None
        ask = chat_ask(call, self._limits, model_max_tokens=most)
        if call.plain is None:
            check_thoughts(call, ask)
        if call.stream and cuttable(candidates[0]):
            return sliced(ask, self._limits.output_slice_tokens)
        return ask

    async def planned(
        self,
        auth: AuthContext,
        call: ChatCall | EmbedCall,
        candidates: tuple[Candidate, ...],
        ask: Ask,
        rules: PiiRules,
    ) -> Plan:
        """Raises like `plan.planned`, and `Unavailable` when the budgets must be read and can't."""
        about = call.about
        if about is not NOBODY_KNOWN:
            about = await named(self._pii, auth, about, rules)
        known = self._budgets.fresh.at_hand(auth)
        budgets = await self._budgets.of(auth) if known is None else known[0]
        # Without any it makes no difference.
        tier = self._router.target(call.model) if budgets else ""
        return planned(auth, budgets, candidates, about, ask, tier=tier, name=call.model)

    def _answer(self, auth: AuthContext, rules: PiiRules, decision: Decision) -> Answer:
        return Answer(Lens(self._pii, auth, rules, decision.placeholders))


@lru_cache(maxsize=1_024)
def _simply_asked(model: str) -> Asked:
    """What a plain request's route depends on, where no conversation keeps its backend."""
    return Asked(name=model, kind="chat")


def embedding(call: EmbedCall) -> dict[str, Json]:
    """What a backend would read of it."""
    return {**call.members, "input": list(call.inputs)}
