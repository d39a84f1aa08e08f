"""One request of the gateway, in the order it happens.

The edge has authenticated it and the parser made it canonical. Then: entitlement → policy → redact → hold budget → route
→ call (→ fall back) → stream → settle → receipt. The only block is `reserved`, because it settles on every way out.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeAlias

import msgspec
from msgspec import Struct

from ports.budget import Amount
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, PermissionDenied
from ports.messages import Json, Usage
from ports.model import PolicyOutcome
from ports.tenant import Tenant
from stack_b.backends.catalog import Candidate
from stack_b.blocks import Refusing, Reserved
from stack_b.budget.balances import Balances
from stack_b.budget.estimate import Ask, chat_ask, embed_ask, tokens_that_fit
from stack_b.budget.meter import Meter, Served, Spending
from stack_b.budget.plan import Budgets, Plan, planned
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.deps import StackBDeps
from stack_b.encoding import encoded
from stack_b.entitlement import TenantCache
from stack_b.interrupt import Deadlines
from stack_b.policy import Decision, decide, enforce
from stack_b.receipt import Trail, budget_members
from stack_b.redaction.answer import Answer
from stack_b.redaction.cache import Remembering
from stack_b.redaction.findings import Finding
from stack_b.redaction.rules import PiiRules, TenantRules
from stack_b.redaction.stream import Lens
from stack_b.routing.choice import may_fall_back
from stack_b.routing.router import Asked, conversation_of
from stack_b.streaming import StreamShaper
from stack_b.tell import Tell
from stack_b.usage import content_bytes_of, kinds_of, usage_of

Act: TypeAlias = Callable[[Candidate], Awaitable[dict[str, Json]]]


class Verdict(Struct, frozen=True, kw_only=True):
    """What `/v1/policy/check` answers: the decisions a call would meet, and nothing changed."""

    policy_outcome: PolicyOutcome
    findings: tuple[Finding, ...]
    budget: dict[str, Json]


class _Ready(Struct, frozen=True, kw_only=True):
    """A request that may be called, once its budget is held."""

    auth: AuthContext
    asked: Asked
    candidates: tuple[Candidate, ...]
    body: dict[str, Json]
    ask: Ask
    plan: Plan
    limit: int
    sent_bytes: int
    answer: Answer
    """How what comes back is shown."""


class Pipeline:
    """Holds no state of a request; safe to call concurrently."""

    def __init__(self, deps: StackBDeps, tell: Tell) -> None:
        self._deps = deps
        self._limits = deps.limits
        self._tell = tell
        self._tenants = TenantCache(deps.tenant, deps.clock)
        self._router = deps.router
        self._budgets = Budgets(deps.budget, deps.clock)
        self._pii = Remembering(deps.pii)
        self._pii_rules = TenantRules(deps.placeholder_key)
        self.balances = Balances(deps.budget, deps.clock)
        self.meter = Meter(deps.budget, deps.clock, self.balances, in_chunks=deps.budget_in_chunks)
        self._deadlines = Deadlines(deps.limits.request_s)

    async def drain(self) -> None:
        """Wait for settlements under way and give back what is held for nobody; once, before the ledger closes."""
        self._deadlines.close()
        await self.meter.drain()
        for known in (self._tenants, self._budgets, self.balances):
            await known.close()

    async def admit(self, auth: AuthContext) -> None:
        """Refuse a tenant that is not served any more, also where everything else is decided already."""
        await self._tenants.tenant(auth)

    async def chat(self, auth: AuthContext, call: ChatCall, *, possible_duplicate: bool = False) -> dict[str, Json]:
        """The whole answer, with its receipt."""
        trail = Trail(auth, self._deps.clock, possible_duplicate=possible_duplicate)
        with self._request(trail, within=self._deadlines):
            ready = await self._prepared_chat(auth, call, trail)
            async with self._reserved(auth, call.model, ready, trail, choices=call.choices) as spending:
                answer = await self._called(
                    ready,
                    spending,
                    trail,
                    lambda to: to.backend.chat(to.card.upstream, ready.body, ready.ask.max_tokens),
                    content_bytes_of,
                )
                answer = await ready.answer.whole(answer)
            self._looked_through(ready, trail)
            return {**answer, "model": call.model, **trail.receipt(spending.total, answer.get("usage"))}

    async def stream(
        self, auth: AuthContext, call: ChatCall, *, possible_duplicate: bool = False
    ) -> AsyncGenerator[dict[str, Json], None]:
        """The chunks of the answer; the receipt is on the finish chunk. Closing it early settles what was used."""
        trail = Trail(auth, self._deps.clock, possible_duplicate=possible_duplicate)
        with self._request(trail):
            ready = await self._prepared_chat(auth, call, trail)
            async with self._reserved(auth, call.model, ready, trail, choices=call.choices) as spending:
                shaper = StreamShaper(call.model)
                async with aclosing(self._streamed(ready, spending, trail, call.model)) as answer:
                    try:
                        async for reached, pieces in answer:
                            shaper = reached
                            for piece in await ready.answer.pieces(pieces):
                                yield piece
                    except AgentOSError:
                        # What came before the failure was paid, and may be read.
                        for piece in await ready.answer.rest():
                            yield piece
                        raise
                for piece in await ready.answer.rest():
                    yield piece
            self._looked_through(ready, trail)
            receipt = trail.receipt(spending.total, shaper.reported)
            for chunk in await ready.answer.closing(shaper.finish(receipt, include_usage=call.include_usage)):
                yield chunk

    async def embed(self, auth: AuthContext, call: EmbedCall) -> dict[str, Json]:
        """One vector per input, in the encoding asked for, with the receipt."""
        trail = Trail(auth, self._deps.clock)
        with self._request(trail, within=self._deadlines):
            asked = Asked(name=call.model, kind="embed", preference=call.preference)
            tenant, candidates = await self._entitled(auth, asked)
            rules = self._rules(tenant)
            decision = await self._inspected(auth, {**call.members, "input": list(call.inputs)}, rules, trail)
            value = decision.value
            redacted = msgspec.structs.replace(call, inputs=tuple(value["input"]))
            ask = embed_ask(redacted)
            plan = planned(auth, await self._budgets.of(auth), candidates, value, ask, tier=call.model)
            ready = _Ready(
                auth=auth,
                asked=asked,
                candidates=plan.candidates,
                body={**value, "encoding_format": call.encoding},
                ask=ask,
                plan=plan,
                limit=tenant.entitlements.tokens_per_day,
                sent_bytes=sum(len(text.encode()) for text in redacted.inputs),
                answer=self._answer(auth, rules, decision),
            )
            async with self._reserved(auth, call.model, ready, trail, choices=1) as spending:
                answer = await self._called(
                    ready, spending, trail, lambda to: to.backend.embed(to.card.upstream, ready.body), lambda _: 0
                )
            data = [{**item, "embedding": encoded(item["embedding"], call.encoding)} for item in answer["data"]]
            receipt = trail.receipt(spending.total, answer.get("usage"))
            return {**answer, "object": "list", "model": call.model, "data": data, **receipt}

    async def check(self, auth: AuthContext, call: ChatCall) -> Verdict:
        """What `chat` would decide, without a call and without changing a row."""
        trail = Trail(auth, self._deps.clock)
        with self._request(trail, within=self._deadlines):
            tenant, candidates = await self._entitled(auth, self._route_asked(call))
            decision = await decide(self._pii, auth, call.members, self._rules(tenant))
            balance = await self.balances.read(auth, limit=tenant.entitlements.tokens_per_day)
            ask = self._asked(msgspec.structs.replace(call, members=decision.value), candidates[0])
            plan = planned(auth, await self._budgets.of(auth), candidates, decision.value, ask, tier=call.model)
            fits = ask.amount <= balance.free + self.meter.idle(auth.tenant) and await self._fits(auth, ask, plan)
            return Verdict(
                policy_outcome=decision.outcome,
                findings=decision.findings,
                budget={**budget_members(balance), "would_hold": ask.amount, "fits": fits},
            )

    async def models(self, auth: AuthContext) -> tuple[Candidate, ...]:
        """What the tenant may ask for, aliases and tiers included, sorted by id, each with who would be asked first."""
        tenant = await self._tenants.tenant(auth)
        return self._router.named(auth, tenant.entitlements)

    # The stages, in their order.

    async def _prepared_chat(self, auth: AuthContext, call: ChatCall, trail: Trail) -> _Ready:
        asked = self._route_asked(call)
        tenant, candidates = await self._entitled(auth, asked)
        rules = self._rules(tenant)
        decision = await self._inspected(auth, call.members, rules, trail)
        body: dict[str, Json] = decision.value
        if body is not call.members:
            call = msgspec.structs.replace(call, members=body)
        ask = self._asked(call, candidates[0])
        plan = planned(auth, await self._budgets.of(auth), candidates, body, ask, tier=call.model)
        return _Ready(
            auth=auth,
            asked=asked,
            candidates=plan.candidates,
            body={**body, "n": call.choices} if call.choices > 1 else body,
            ask=ask,
            plan=plan,
            limit=tenant.entitlements.tokens_per_day,
            sent_bytes=ask.body_bytes if call.choices == 1 else len(msgspec.json.encode({**body, "n": call.choices})),
            answer=self._answer(auth, rules, decision),
        )

    def _asked(self, call: ChatCall, preferred: Candidate) -> Ask:
        most = preferred.card.max_tokens
        if most is not None and call.max_tokens is not None and call.max_tokens > most:
            raise InvalidArgument(
                f"max_tokens is at most {most} for this model",
                code="validation_failed",
                details={"path": "$.max_tokens"},
            )
        return chat_ask(call, self._limits, model_max_tokens=most)

    async def _entitled(self, auth: AuthContext, asked: Asked) -> tuple[Tenant, tuple[Candidate, ...]]:
        tenant = await self._tenants.tenant(auth)
        now = self._deps.clock.now()
        routed = self._router.candidates(auth, asked, tenant.entitlements)
        candidates = tuple(self._deps.prices.priced(one, now) for one in routed)
        if not candidates:
            # The same words whether it isn't served or isn't theirs.
            raise PermissionDenied(
                f"this tenant has no {asked.kind} model of the name it asked for; GET /v1/models lists what it may use",
                code="model_not_entitled",
            )
        return tenant, candidates

    async def _fits(self, auth: AuthContext, ask: Ask, plan: Plan) -> bool:
        """Whether the tenant's own hard budgets have room."""
        if not plan.also:
            return True
        amount = Amount(tokens=ask.amount, nanousd=plan.nanousd)
        balances = zip(plan.also, await self._deps.budget.standing(auth, plan.also), strict=True)
        return all(
            account.budget.mode != "hard" or amount.of(account.budget.unit) <= balance.free
            for account, balance in balances
        )

    async def _inspected(self, auth: AuthContext, members: dict[str, Json], rules: PiiRules, trail: Trail) -> Decision:
        decision = await decide(self._pii, auth, members, rules)
        trail.outcome = decision.outcome
        self._tell.decided(decision.findings)
        enforce(decision)
        return decision

    def _rules(self, tenant: Tenant) -> PiiRules:
        return self._pii_rules.of(tenant.id, tenant.entitlements.pii)

    def _answer(self, auth: AuthContext, rules: PiiRules, decision: Decision) -> Answer:
        return Answer(Lens(self._pii, auth, rules, decision.placeholders))

    def _looked_through(self, ready: _Ready, trail: Trail) -> None:
        """Note what was taken out of the answer, before the receipt is written."""
        trail.outcome = ready.answer.outcome(trail.outcome)
        self._tell.decided(ready.answer.findings)

    def _reserved(self, auth: AuthContext, model: str, ready: _Ready, trail: Trail, *, choices: int) -> Reserved:
        plan = ready.plan
        reservation = self.meter.reserved(
            auth,
            ready.ask.amount,
            limit=ready.limit,
            lease=self._limits.lease,
            also=plan.also,
            nanousd=plan.nanousd,
            about=plan.about,
        )
        return Reserved(
            reservation,
            trail,
            standing=lambda: self.balances.current(auth, limit=ready.limit),
            fits=lambda: tokens_that_fit(ready.limit, ready.ask, choices=choices),
            settled=lambda usage: self._tell.settled(auth, model, usage),
        )

    async def _called(
        self, ready: _Ready, spending: Spending, trail: Trail, act: Act, written: Callable[[dict[str, Json]], int]
    ) -> dict[str, Json]:
        """The first whole answer that a candidate gives. `written` measures how much a backend wrote."""
        failure: AgentOSError | None = None
        for candidate in self._router.tries(ready.candidates):
            spending.assume(_lost(ready, candidate), _served(candidate))
            try:
                with trail.attempt(candidate), self._router.attempt(ready.auth, ready.asked, candidate):
                    answer = await act(candidate)
            except AgentOSError as error:
                self._failed(ready, candidate, spending, trail, error)
                if not may_fall_back(error):
                    raise
                failure = error
                continue
            usage = usage_of(
                answer.get("usage"),
                prompt_bytes=ready.sent_bytes,
                content_bytes=written(answer),
                price=candidate.card.price,
            )
            spending.add(usage, _served(candidate, answer.get("usage")))
            self._tell.attempted(candidate, trail.paid(usage))
            return answer
        assert failure is not None, "there is always a candidate"
        raise failure

    async def _streamed(
        self, ready: _Ready, spending: Spending, trail: Trail, model: str
    ) -> AsyncGenerator[tuple[StreamShaper, list[dict[str, Json]]], None]:
        """The pieces of the first answer that begins. Once content was released there is no falling back."""
        failure: AgentOSError | None = None
        for candidate in self._router.tries(ready.candidates):
            shaper = StreamShaper(model)
            spending.assume(_lost(ready, candidate), _served(candidate))
            begun = False
            try:
                attempting = self._router.attempt(ready.auth, ready.asked, candidate)
                with trail.attempt(candidate), attempting as attempt:
                    chunks = candidate.backend.stream(candidate.card.upstream, ready.body, ready.ask.max_tokens)
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            pieces = shaper.feed(chunk)
                            if pieces:
                                begun = True
                                trail.first_content()
                                attempt.answered()
                                yield shaper, pieces
                    # Here, because an answer that only looks whole is a failure of its backend.
                    shaper.complete()
            except AgentOSError as error:
                if begun or shaper.reported or shaper.content_bytes:
                    # Also of what was gathered and never released, such as half a tool call.
                    self._streamed_usage(ready, candidate, spending, trail, shaper)
                else:
                    self._failed(ready, candidate, spending, trail, error)
                if begun or not may_fall_back(error):
                    raise
                failure = error
                continue
            except BaseException:
                # The client is gone, or time is up. What was relayed is owed.
                self._streamed_usage(ready, candidate, spending, trail, shaper)
                raise
            self._streamed_usage(ready, candidate, spending, trail, shaper)
            yield shaper, []
            return
        assert failure is not None, "there is always a candidate"
        raise failure

    def _streamed_usage(
        self, ready: _Ready, candidate: Candidate, spending: Spending, trail: Trail, shaper: StreamShaper
    ) -> None:
        usage = usage_of(
            shaper.reported,
            prompt_bytes=ready.sent_bytes,
            content_bytes=shaper.content_bytes,
            price=candidate.card.price,
        )
        spending.add(usage, _served(candidate, shaper.reported))
        self._tell.attempted(candidate, trail.paid(usage))

    def _failed(
        self, ready: _Ready, candidate: Candidate, spending: Spending, trail: Trail, error: AgentOSError
    ) -> None:
        """An attempt that gave nothing is free, unless the backend may have worked all the same."""
        usage = _lost(ready, candidate) if error.details.get("outcome") == "unknown" else Usage()
        spending.add(usage, _served(candidate))
        self._tell.attempted(candidate, trail.paid(usage))

    def _request(self, trail: Trail, within: Deadlines | None = None) -> Refusing:
        """Around a request; a stream's time is bounded by who sends it."""
        return Refusing(trail, self._tell, within)

    def _route_asked(self, call: ChatCall) -> Asked:
        conversation = conversation_of(call.members) if self._router.spreads() else ""
        return Asked(name=call.model, kind="chat", preference=call.preference, conversation=conversation)


def _served(candidate: Candidate, reported: dict[str, Json] | None = None) -> Served:
    kinds = kinds_of(reported)
    price = candidate.card.price
    return Served(
        model=candidate.card.id,
        backend=candidate.backend.name,
        price=price.version if price is not None else "",
        cache_read=kinds.cache_read,
        cache_write=kinds.cache_write,
        reasoning=kinds.reasoning,
    )


def _lost(ready: _Ready, candidate: Candidate) -> Usage:
    """What a call is taken to have cost of which nothing came back."""
    return usage_of(None, prompt_bytes=ready.sent_bytes, content_bytes=0, price=candidate.card.price)
