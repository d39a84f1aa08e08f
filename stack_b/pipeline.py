"""One request of the gateway, in the order it happens.

The edge has authenticated it and the parser made it canonical. Then: entitlement → policy → redact → hold budget → route
→ call (→ fall back) → stream → settle → receipt. The only block is `reserved`, because it settles on every way out.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

import msgspec
from msgspec import Struct

from ports.budget import Amount
from ports.context import AuthContext
from ports.errors import AgentOSError, PermissionDenied
from ports.messages import Json, Usage
from ports.model import PolicyOutcome
from ports.tenant import Tenant
from stack_b.backends.catalog import Candidate
from stack_b.blocks import Refusing, Reserved
from stack_b.budget.balances import Balances
from stack_b.budget.estimate import Ask, capable, chat_ask, embed_ask, most_of, most_written, sliced
from stack_b.budget.meter import Meter, Served, Spending
from stack_b.budget.plan import Budgets, Plan, planned, tokens_that_fit
from stack_b.budget.slices import Slices, cuttable
from stack_b.caller import Caller
from stack_b.canonical import ChatCall, EmbedCall, said, sent
from stack_b.chunks import Piece, written_out
from stack_b.deps import StackBDeps
from stack_b.encoding import encoded
from stack_b.entitlement import TenantCache
from stack_b.interrupt import Deadlines
from stack_b.kept_texts import texts_to_keep
from stack_b.policies.answer import Guarded
from stack_b.policies.desk import Ruled, ruled
from stack_b.policy import Decision, decide, enforce, named
from stack_b.receipt import Trail, budget_members
from stack_b.records.recorder import Recorder
from stack_b.redaction.answer import Answer
from stack_b.redaction.cache import Remembering
from stack_b.redaction.findings import Finding
from stack_b.redaction.rules import PiiRules, TenantRules
from stack_b.redaction.stream import Lens
from stack_b.replay import Gathered
from stack_b.routing.choice import may_fall_back
from stack_b.routing.router import Asked, conversation_of
from stack_b.streaming import StreamShaper
from stack_b.tell import Tell
from stack_b.usage import content_bytes_of, kinds_of, usage_of

Act: TypeAlias = Callable[[Candidate, int], Awaitable[dict[str, Json]]]
"""Calls a candidate, which may write so many tokens."""


class Verdict(Struct, frozen=True, kw_only=True):
    """What `/v1/policy/check` answers: the decisions a call would meet, and nothing changed."""

    policy_outcome: PolicyOutcome
    findings: tuple[Finding, ...]
    refusal: str | None
    """The code of the error that a call would be refused with by policy."""
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
    answer: Answer | Guarded
    """How what comes back is shown."""
    caller: Caller


class Pipeline:
    """Holds no state of a request; safe to call concurrently."""

    def __init__(self, deps: StackBDeps, tell: Tell) -> None:
        self._deps = deps
        self._limits = deps.limits
        self._tell = tell
        self._tenants = TenantCache(deps.tenant, deps.clock)
        self._router = deps.router
        self._policies = deps.policies
        self._budgets = Budgets(deps.budget, deps.clock)
        self._pii = Remembering(deps.pii)
        self._pii_rules = TenantRules(deps.placeholder_key)
        self.balances = Balances(deps.budget, deps.clock)
        self.recorder = Recorder(deps, self._pii)
        self.meter = Meter(deps.budget, deps.clock, self.balances, in_chunks=deps.budget_in_chunks)
        self._deadlines = Deadlines(deps.limits.request_s)

    async def drain(self) -> None:
        """Wait for settlements and records under way, give back what is held for nobody; once, before the ledger closes."""
        self._deadlines.close()
        await self.meter.drain()
        await self.recorder.writer.drain()
        for known in (self._tenants, self._budgets, self.balances):
            await known.close()

    async def admit(self, auth: AuthContext) -> None:
        """Refuse a tenant that is not served any more, also where everything else is decided already."""
        await self._tenants.tenant(auth)

    async def chat(
        self, auth: AuthContext, call: ChatCall, *, possible_duplicate: bool = False, caller: Caller | None = None
    ) -> dict[str, Json]:
        """The whole answer, with its receipt."""
        trail = Trail(auth, self._deps.clock, possible_duplicate=possible_duplicate)
        async with self.recorder.recorded(trail, call):
            return await self._chat(auth, call, trail, caller or Caller())

    async def _chat(self, auth: AuthContext, call: ChatCall, trail: Trail, caller: Caller) -> dict[str, Json]:
        with self._request(trail, within=self._deadlines):
            ready = await self._prepared_chat(auth, call, trail, caller)
            async with self._reserved(auth, call.model, ready, trail) as spending:
                answer = await self._called(
                    ready,
                    spending,
                    trail,
                    lambda to, max_tokens: to.backend.chat(to.card.upstream, ready.body, max_tokens),
                    content_bytes_of,
                )
                if trail.texts is not None:
                    trail.texts.answer = answer["choices"]
                answer = await ready.answer.whole(answer)
            self._looked_through(ready, trail)
            return {**answer, "model": call.model, **trail.receipt(spending.total, answer.get("usage"))}

    async def stream(
        self, auth: AuthContext, call: ChatCall, *, possible_duplicate: bool = False, caller: Caller | None = None
    ) -> AsyncGenerator[Sequence[Piece], None]:
        """The chunks of the answer, as many as are there at a time; the receipt is on the finish chunk. Closing it early
        settles what was used."""
        trail = Trail(auth, self._deps.clock, possible_duplicate=possible_duplicate)
        async with self.recorder.recorded(trail, call):
            with self._request(trail):
                ready = await self._prepared_chat(auth, call, trail, caller or Caller())
                gathered = None if trail.texts is None else Gathered()
                async with self._reserved(auth, call.model, ready, trail) as spending:
                    shaper = StreamShaper(call.model)
                    async with (
                        self._slices(ready, spending) as slices,
                        aclosing(self._streamed(ready, spending, trail, call.model, slices)) as answer,
                    ):
                        try:
                            async for reached, pieces in answer:
                                shaper = reached
                                if gathered is not None:
                                    gathered.add_all(written_out(pieces))
                                if shown := await ready.answer.pieces(pieces):
                                    yield shown
                        except AgentOSError:
                            # What came before the failure was paid, and may be read.
                            if rest := await ready.answer.rest():
                                yield rest
                            raise
                    if rest := await ready.answer.rest():
                        yield rest
                self._looked_through(ready, trail)
                if trail.texts is not None and gathered is not None:
                    trail.texts.answer = gathered.reply()["choices"]
                receipt = trail.receipt(spending.total, shaper.reported)
                yield await ready.answer.closing(shaper.finish(receipt, include_usage=call.include_usage))

    async def embed(
        self, auth: AuthContext, call: EmbedCall, *, possible_duplicate: bool = False, caller: Caller | None = None
    ) -> dict[str, Json]:
        """One vector per input, in the encoding asked for, with the receipt."""
        trail = Trail(auth, self._deps.clock, possible_duplicate=possible_duplicate)
        async with self.recorder.recorded(trail, call):
            return await self._embed(auth, call, trail, caller or Caller())

    async def _embed(self, auth: AuthContext, call: EmbedCall, trail: Trail, caller: Caller) -> dict[str, Json]:
        with self._request(trail, within=self._deadlines):
            asked = self._route_asked(call)
            tenant, entitled = await self._entitled(auth, asked)
            members = _embedding(call)
            candidates = self._permitted(self._ruled(auth, tenant, call, members, entitled), trail).candidates
            rules = self._rules(tenant)
            decision = await self._inspected(auth, members, rules, trail)
            value = decision.value
            trail.texts = texts_to_keep(tenant.entitlements, value)
            redacted = msgspec.structs.replace(call, inputs=tuple(value["input"]))
            ask = embed_ask(redacted)
            about = await named(self._pii, auth, call.about, self._rules(tenant))
            plan = planned(auth, await self._budgets.of(auth), candidates, about, ask, tier=call.model)
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
                caller=caller,
            )
            async with self._reserved(auth, call.model, ready, trail) as spending:
                answer = await self._called(
                    ready, spending, trail, lambda to, _: to.backend.embed(to.card.upstream, ready.body), lambda _: 0
                )
            data = [{**item, "embedding": encoded(item["embedding"], call.encoding)} for item in answer["data"]]
            receipt = trail.receipt(spending.total, answer.get("usage"))
            return {**answer, "object": "list", "model": call.model, "data": data, **receipt}

    async def check(self, auth: AuthContext, call: ChatCall | EmbedCall) -> Verdict:
        """What `chat` or `embed` would decide, without a call and without changing a row."""
        trail = Trail(auth, self._deps.clock)
        with self._request(trail, within=self._deadlines):
            asked, members = self._route_asked(call), said(call) if isinstance(call, ChatCall) else _embedding(call)
            tenant, entitled = await self._entitled(auth, asked)
            ruled = self._ruled(auth, tenant, call, members, entitled)
            if ruled.blocked is not None:
                return await self._blocked(auth, tenant, ruled.blocked, (), ruled.refusal.code)
            decision = await decide(self._pii, auth, members, self._rules(tenant))
            if decision.outcome.decision == "blocked":
                return await self._blocked(auth, tenant, decision.outcome, decision.findings, "policy_blocked")
            candidates = ruled.candidates
            balance = await self.balances.read(auth, limit=tenant.entitlements.tokens_per_day)
            if isinstance(call, ChatCall):
                candidates = capable(call, candidates)
            ask = self._would_ask(call, decision.value, candidates)
            about = await named(self._pii, auth, call.about, self._rules(tenant))
            plan = planned(auth, await self._budgets.of(auth), candidates, about, ask, tier=call.model)
            fits = ask.amount <= balance.free + self.meter.idle(auth.tenant) and await self._fits(auth, ask, plan)
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
        balance = await self.balances.read(auth, limit=tenant.entitlements.tokens_per_day)
        return Verdict(
            policy_outcome=outcome,
            findings=findings,
            refusal=refusal,
            budget={**budget_members(balance), "would_hold": 0, "fits": True},
        )

    async def models(self, auth: AuthContext) -> tuple[Candidate, ...]:
        """What the tenant may ask for, aliases and tiers included, sorted by id, each with who would be asked first."""
        tenant = await self._tenants.tenant(auth)
        return self._router.named(auth, tenant.entitlements)

    # The stages, in their order.

    async def _prepared_chat(self, auth: AuthContext, call: ChatCall, trail: Trail, caller: Caller) -> _Ready:
        asked = self._route_asked(call)
        tenant, entitled = await self._entitled(auth, asked)
        members = said(call)
        ruled = self._permitted(self._ruled(auth, tenant, call, members, entitled), trail)
        rules = self._rules(tenant)
        decision = await self._inspected(auth, members, rules, trail)
        value: dict[str, Json] = decision.value
        trail.texts = texts_to_keep(tenant.entitlements, value)
        if value is not call.members:
            call = msgspec.structs.replace(call, members=value)
        candidates = capable(call, ruled.candidates)
        ask = self._asked(call, candidates)
        about = await named(self._pii, auth, call.about, rules)
        plan = planned(auth, await self._budgets.of(auth), candidates, about, ask, tier=call.model)
        told = sent(call, value)
        told = {**told, "n": call.choices} if call.choices > 1 else told
        return _Ready(
            auth=auth,
            asked=asked,
            candidates=plan.candidates,
            body=told,
            ask=ask,
            plan=plan,
            limit=tenant.entitlements.tokens_per_day,
            sent_bytes=ask.body_bytes if told is value else len(msgspec.json.encode(told)),
            answer=ruled.guarded(self._answer(auth, rules, decision)),
            caller=caller,
        )

    def _would_ask(self, call: ChatCall | EmbedCall, value: Json, candidates: tuple[Candidate, ...]) -> Ask:
        if isinstance(call, EmbedCall):
            return embed_ask(msgspec.structs.replace(call, inputs=tuple(value["input"])))
        return self._asked(msgspec.structs.replace(call, members=value), candidates)

    def _asked(self, call: ChatCall, candidates: tuple[Candidate, ...]) -> Ask:
        ask = chat_ask(call, self._limits, model_max_tokens=most_of(candidates))
        if call.stream and cuttable(candidates[0]):
            return sliced(ask, self._limits.output_slice_tokens)
        return ask

    async def _entitled(self, auth: AuthContext, asked: Asked) -> tuple[Tenant, tuple[Candidate, ...]]:
        tenant = await self._tenants.tenant(auth)
        now = self._deps.clock.now()
        candidates = self._router.candidates(
            auth, asked, tenant.entitlements, lambda one: self._deps.prices.priced(one, now)
        )
        if not candidates:
            # The same words whether it isn't served or isn't theirs.
            raise PermissionDenied(
                f"this tenant has no {asked.kind} model of the name it asked for; GET /v1/models lists what it may use",
                code="model_not_entitled",
            )
        return tenant, candidates

    def _ruled(
        self,
        auth: AuthContext,
        tenant: Tenant,
        call: ChatCall | EmbedCall,
        members: dict[str, Json],
        candidates: tuple[Candidate, ...],
    ) -> Ruled:
        """Which of them the policies permit; changes nothing."""
        rules = self._policies.of(tenant)
        if rules.is_empty:
            return Ruled(candidates=candidates)

        def may_write(candidate: Candidate) -> int:
            return most_written(call, self._limits, candidate.card.max_tokens) if isinstance(call, ChatCall) else 0

        return ruled(
            rules,
            auth,
            members,
            candidates,
            agent=call.about.agent,
            tier=self._router.tier(call.model),
            may_write=may_write,
        )

    def _permitted(self, ruled: Ruled, trail: Trail) -> Ruled:
        if ruled.blocked is not None:
            trail.outcome = ruled.blocked
            raise ruled.refusal
        return ruled

    async def _fits(self, auth: AuthContext, ask: Ask, plan: Plan) -> bool:
        """Whether the tenant's own hard budgets have room."""
        if not plan.also:
            return True
        amount = Amount(tokens=ask.amount, nanousd=plan.nanousd)
        balances = zip(plan.also, await self._deps.budget.standing(auth, plan.also), strict=True)
        return all(
            account.budget.mode != "hard"
            or amount.of(account.budget.unit)
            <= balance.free + self.meter.idle(auth.tenant, account.key, account.budget.unit)
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
        self._tell.answered(trail.outcome, ready.answer.findings)

    def _reserved(self, auth: AuthContext, model: str, ready: _Ready, trail: Trail) -> Reserved:
        plan = ready.plan
        reservation = self.meter.reserved(
            auth,
            ready.ask.amount,
            limit=ready.limit,
            lease=self._limits.lease,
            also=plan.also,
            nanousd=plan.nanousd,
            about=plan.about,
            request=trail.request,
        )
        return Reserved(
            reservation,
            trail,
            standing=lambda: self.balances.current(auth, limit=ready.limit),
            fits=lambda: tokens_that_fit(plan, ready.ask, limit=ready.limit),
            settled=lambda usage: self._tell.settled(auth, model, usage),
        )

    async def _called(
        self, ready: _Ready, spending: Spending, trail: Trail, act: Act, written: Callable[[dict[str, Json]], int]
    ) -> dict[str, Json]:
        """The first whole answer that a candidate gives. `written` measures how much a backend wrote."""
        failure: AgentOSError | None = None
        slices = self._slices(ready, spending)
        for candidate in self._router.tries(ready.candidates):
            max_tokens = await self._allowed(ready, candidate, spending, slices, failure, in_slices=False)
            spending.assume(_lost(ready, candidate), _served(candidate))
            ready.answer.served_by(candidate)
            try:
                asking = ready.caller.asking(candidate.backend, streamed=False)
                with trail.attempt(candidate), self._router.attempt(ready.auth, ready.asked, candidate), asking:
                    answer = await act(candidate, max_tokens)
            except AgentOSError as error:
                self._failed(ready, candidate, spending, trail, error)
                if ready.caller.gone or not may_fall_back(error):
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
            trail.limited_by = slices.limited_by
            return answer
        assert failure is not None, "there is always a candidate"
        raise failure

    async def _streamed(
        self, ready: _Ready, spending: Spending, trail: Trail, model: str, slices: Slices
    ) -> AsyncGenerator[tuple[StreamShaper, list[Piece]], None]:
        """The pieces of the first answer that begins. Once content was released there is no falling back."""
        failure: AgentOSError | None = None
        for candidate in self._router.tries(ready.candidates):
            shaper = StreamShaper(model)
            max_tokens = await self._allowed(ready, candidate, spending, slices, failure, in_slices=cuttable(candidate))
            spending.assume(_lost(ready, candidate), _served(candidate))
            ready.answer.served_by(candidate)
            begun = False
            try:
                attempting = self._router.attempt(ready.auth, ready.asked, candidate)
                asking = ready.caller.asking(candidate.backend, streamed=True)
                with trail.attempt(candidate), attempting as attempt, asking:
                    chunks = candidate.backend.stream(candidate.card.upstream, ready.body, max_tokens)
                    async with aclosing(chunks):
                        async for come in chunks:
                            pieces = shaper.take(come)
                            enough = slices.covers(*shaper.written) or await slices.covered(*shaper.written)
                            if pieces:
                                begun = True
                                trail.first_content()
                                attempt.answered()
                                yield shaper, pieces
                            if not enough and shaper.open:
                                # Closing it ends the bill before more is written than is held.
                                shaper.cut()
                                break
                    # Here, because an answer that only looks whole is a failure of its backend.
                    shaper.complete()
            except AgentOSError as error:
                if begun or shaper.reported or shaper.content_bytes:
                    # Also of what was gathered and never released, such as half a tool call.
                    self._streamed_usage(ready, candidate, spending, trail, shaper)
                else:
                    self._failed(ready, candidate, spending, trail, error)
                if begun or ready.caller.gone or not may_fall_back(error):
                    raise
                failure = error
                continue
            except BaseException:
                # The client is gone, or time is up. What was relayed is owed.
                self._streamed_usage(ready, candidate, spending, trail, shaper)
                raise
            self._streamed_usage(ready, candidate, spending, trail, shaper)
            trail.limited_by = slices.limited_by
            yield shaper, []
            return
        assert failure is not None, "there is always a candidate"
        raise failure

    def _slices(self, ready: _Ready, spending: Spending) -> Slices:
        assert spending.held is not None, "it is held by now"
        return Slices(
            spending.held,
            prompt_bound=ready.ask.prompt_bound,
            choices=ready.ask.choices,
            slice_tokens=self._limits.output_slice_tokens,
            monotonic=self._deps.clock.monotonic,
        )

    async def _allowed(
        self,
        ready: _Ready,
        candidate: Candidate,
        spending: Spending,
        slices: Slices,
        failure: AgentOSError | None,
        *,
        in_slices: bool,
    ) -> int:
        """The `max_tokens` for the next attempt; without room for one it stays at the failure of the one before."""
        most = ready.ask.max_tokens
        price = candidate.card.price if ready.plan.money else None
        limit = most if candidate.card.max_tokens is None else min(most, candidate.card.max_tokens)
        try:
            return await slices.begin(limit, in_slices=in_slices, spent=spending.amount, price=price)
        except AgentOSError as refused:
            self._router.left(candidate)
            raise failure or refused from None

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

    def _route_asked(self, call: ChatCall | EmbedCall) -> Asked:
        if isinstance(call, EmbedCall):
            return Asked(name=call.model, kind="embed", preference=call.preference)
        conversation = conversation_of(call.members) if self._router.spreads() else ""
        return Asked(
            name=call.model,
            kind="chat",
            preference=call.preference,
            agent=call.about.agent,
            conversation=conversation,
        )


def _embedding(call: EmbedCall) -> dict[str, Json]:
    """What a backend would read of it."""
    return {**call.members, "input": list(call.inputs)}


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
