"""One request of the gateway, in the order it happens.

The edge has authenticated it and the parser made it canonical. Then: entitlement → policy → redact (`prepare`) → hold
budget → route → call (→ fall back, `attempts`) → restore → stream → settle → receipt, record. What is a block happens on
every way out.
"""

from collections.abc import Awaitable
from contextlib import nullcontext

from ports.context import AuthContext
from ports.errors import AgentOSError, PermissionDenied
from ports.messages import Json
from ports.tenant import Tenant
from stack_b.anew import Anew
from stack_b.at_once import Sent, Work
from stack_b.attempts import Attempts, most
from stack_b.backends.catalog import Candidate
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.blocks import Refusing, Reserved
from stack_b.budget.balances import Balances
from stack_b.budget.held import Held
from stack_b.budget.meter import Meter
from stack_b.caller import Caller
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.check import Check, Verdict
from stack_b.deps import StackBDeps
from stack_b.encoding import vector_of
from stack_b.entitlement import TenantCache
from stack_b.inspection.inspector import Inspector, Patient
from stack_b.inspection.processes import Processes
from stack_b.interrupt import Deadlines
from stack_b.listeners import Seats
from stack_b.prepare import Preparation, Ready
from stack_b.receipt import Trail
from stack_b.records.recorder import Recorder
from stack_b.redaction.cache import Remembering
from stack_b.relay import NotShown, Relay, Show
from stack_b.tell import Tell
from stack_b.usage import content_bytes_of


class Pipeline:
    """Holds no state of a request; safe to call concurrently."""

    def __init__(self, deps: StackBDeps, tell: Tell) -> None:
        self._processes = Processes()
        patient = Patient(deps.pii, self._processes)
        pii = Remembering(patient, at_once=patient.at_once)
        inspector = Inspector(pii, self._processes)
        self._clock = deps.clock
        self._lease = deps.limits.lease
        self._tell = tell
        self._router = deps.router
        self._tenants = TenantCache(deps.tenant, deps.clock, share=deps.share)
        self.balances = Balances(deps.budget, deps.clock)
        self.seats = Seats(self._tenants)
        self.recorder = Recorder(deps, inspector)
        self.meter = Meter(deps.budget, deps.clock, self.balances, in_chunks=deps.budget_in_chunks)
        self._prepare = Preparation(
            deps, tell, self._tenants, pii, inspector=inspector, balances=self.balances, meter=self.meter
        )
        self._attempts = Attempts(deps.router, deps.clock, deps.limits, tell)
        self._check = Check(self._prepare, deps.budget, self.balances, self.meter, inspector)
        self.anew = Anew(self._prepare, self.recorder, pii, deps.clock, tell)
        self._deadlines = Deadlines(deps.limits.request_s)
        self.stream_deadlines = Deadlines(deps.limits.request_s, TimeoutError)
        """For whoever sends what `stream` shows."""

    async def drain(self) -> None:
        """Wait for settlements and records under way, give back what is held for nobody; once, before the ledger closes."""
        self._deadlines.close()
        self.stream_deadlines.close()
        await self.meter.drain()
        await self.recorder.writer.drain()
        for known in (self._tenants, self._prepare, self.balances):
            await known.close()
        await self._processes.close()

    async def admit(self, auth: AuthContext) -> Tenant:
        """Refuse a tenant that is not served any more, also where everything else is decided already."""
        return await self._tenants.tenant(auth)

    async def chat(
        self, auth: AuthContext, call: ChatCall, *, possible_duplicate: bool = False, caller: Caller | None = None
    ) -> dict[str, Json]:
        """The whole answer, with its receipt."""
        trail, caller = Trail(auth, self._clock, possible_duplicate=possible_duplicate), caller or Caller()
        return await self._chat(auth, call, trail, caller, None)

    async def _chat(
        self, auth: AuthContext, call: ChatCall, trail: Trail, caller: Caller, sent: Sent | None
    ) -> dict[str, Json]:
        """`sent`: what was done of it by `at_once`."""
        try:
            with Refusing(trail, self._tell, self._deadlines, caller, None if sent is None else sent.interrupt):
                if sent is None:
                    ready = await self._prepare.chat(auth, call, trail, caller)
                    reserved, calling = self._reserved(ready, trail), None
                else:
                    sent.raise_if_over()
                    ready, reserved, calling = sent.ready, sent.reserved, sent.calling

                def act(to: Candidate, max_tokens: int) -> Awaitable[dict[str, Json]]:
                    going_on = None if sent is None else sent.going_on()
                    return going_on or to.backend.chat(to.card.upstream, ready.body, max_tokens)

                async with reserved as spending:
                    if sent is not None:
                        sent.raise_if_paid()
                    answer = await self._attempts.whole(ready, spending, trail, act, content_bytes_of, begun=calling)
                    answer = await ready.answer.whole(answer)
                    if trail.texts is not None:
                        trail.texts.answer = ready.answer.to_keep(answer["choices"])
                answer = self._told(ready, trail, call, spending, answer)
        except BaseException as error:
            await self.recorder.over(trail, call, error)
            raise
        if trail.texts is None:
            self.recorder.went_well(trail, call)
        else:
            await self.recorder.over(trail, call, None)
        return answer

    def at_once(self, auth: AuthContext, call: ChatCall, work: Work) -> Sent | None:
        """`chat`, until it is sent, for `work` that is no coroutine; None, and nothing done, where that takes waiting.

        `work` has `arrived` when there is an answer or none will come, and is cancelled when time is up.
        """
        try:
            return self._sent(auth, call, work)
        except Exception:  # noqa: BLE001 - the coroutine meets it as well, and tells it
            return None

    def _sent(self, auth: AuthContext, call: ChatCall, work: Work) -> Sent | None:
        trail, caller = Trail(auth, self._clock), Caller()
        prepared = self._prepare.at_hand(auth, call, trail, caller)
        if prepared is None:
            return None
        ready, tenant = prepared
        first = ready.candidates[0]
        backend = first.backend
        if not ready.ask.holds_all or not self._router.is_closed(first) or not isinstance(backend, OpenAiCompatible):
            return None
        connection = backend.idle()
        if connection is None:
            return None
        reserved, interrupt = self._reserved(ready, trail), None
        try:
            if reserved.at_hand() is None:
                connection.give_back()
                return None
            self._tenants.counted(tenant)
            ready.answer.served_by(first)
            interrupt = self._deadlines.begin(work)
            calling = self._attempts.calling(ready, trail, first)
            calling.__enter__()
            answer = backend.send(connection, first.card.upstream, ready.body, most(ready, first), work.arrived)
        except BaseException:
            connection.abort()
            if interrupt is not None:
                self._deadlines.end(interrupt, None, None, None)
            if reserved.entered:
                reserved.ended()
            raise
        return Sent(
            call=call,
            trail=trail,
            ready=ready,
            reserved=reserved,
            calling=calling,
            interrupt=interrupt,
            backend=backend,
            answer=answer,
        )

    def arrived(self, sent: Sent) -> dict[str, Json] | None:
        """The rest of it, where the whole answer is here and nothing is to be waited for; else None: it is `going_on`'s.

        So is whatever this raises, which is a defect.
        """
        trail, ready, spending = sent.trail, sent.ready, sent.reserved
        answer = sent.answered()
        if answer is None or not ready.answer.at_hand(answer):
            return None
        candidate = ready.candidates[0]
        try:
            usage = self._attempts.used(ready, candidate, answer, content_bytes_of)
            sent.release()
            sent.calling.__exit__(None, None, None)
            self._attempts.paid(candidate, spending, trail, usage, answer)
            sent.paid = True
            sent.reserved.left()
            self._deadlines.end(sent.interrupt, None, None, None)
            answer = self._told(ready, trail, sent.call, spending, answer)
            self.recorder.went_well(trail, sent.call)
        except BaseException as error:
            # Raised again by `going_on`, where it is settled and told.
            sent.failed = error
            raise
        return answer

    async def going_on(self, sent: Sent) -> dict[str, Json]:
        """What is left of it, whatever has become of it by now. Raises like `chat`."""
        return await self._chat(sent.trail.auth, sent.call, sent.trail, sent.ready.caller, sent)

    async def stream(
        self,
        auth: AuthContext,
        call: ChatCall,
        show: Show,
        *,
        possible_duplicate: bool = False,
        caller: Caller | None = None,
        seated: bool = False,
    ) -> None:
        """Shows the chunks of the answer, as many as are there at a time; the receipt is on the finish chunk. Cancelling
        it settles what was used. `seated`: a stream's place was taken for it."""
        trail = Trail(auth, self._clock, possible_duplicate=possible_duplicate)
        async with self.recorder.recorded(trail, call), nullcontext() if seated else self._tenants.streaming(auth):
            # Its time is bounded by who sends it.
            with Refusing(trail, self._tell):
                ready = await self._prepare.chat(auth, call, trail, caller or Caller())
                relay = Relay(ready, trail, show)
                async with self._reserved(ready, trail) as spending:
                    try:
                        async with self._attempts.slices(ready, spending) as slices:
                            shaper = await self._attempts.streamed(
                                ready, spending, trail, call.model, slices, show=relay.take
                            )
                    except NotShown as error:
                        await relay.rest()
                        raise error.error from error
                    except AgentOSError:
                        await relay.rest()
                        raise
                    await relay.rest()
                self._looked_through(ready, trail)
                receipt = trail.receipt(spending.total, await ready.answer.counts(shaper.reported))
                await relay.end(shaper.finish(receipt, include_usage=call.include_usage))

    async def embed(
        self, auth: AuthContext, call: EmbedCall, *, possible_duplicate: bool = False, caller: Caller | None = None
    ) -> dict[str, Json]:
        """One vector per input, in the encoding asked for, with the receipt."""
        trail = Trail(auth, self._clock, possible_duplicate=possible_duplicate)
        async with self.recorder.recorded(trail, call):
            return await self._embed(auth, call, trail, caller or Caller())

    async def _embed(self, auth: AuthContext, call: EmbedCall, trail: Trail, caller: Caller) -> dict[str, Json]:
        with Refusing(trail, self._tell, self._deadlines, caller):
            ready = await self._prepare.embed(auth, call, trail, caller)
            async with self._reserved(ready, trail) as spending:
                answer = await self._attempts.whole(
                    ready, spending, trail, lambda to, _: to.backend.embed(to.card.upstream, ready.body), lambda _: 0
                )
            answer = await ready.answer.beside(answer)
            data = [vector_of(item, call.encoding) for item in answer["data"]]
            receipt = trail.receipt(spending.total, await ready.answer.counts(answer.get("usage")))
            return {**answer, "object": "list", "model": call.model, "data": data, **receipt}

    async def check(self, auth: AuthContext, call: ChatCall | EmbedCall) -> Verdict:
        """What `chat` or `embed` would decide, without a call. A denial is in the audit before it is told."""
        trail = Trail(auth, self._clock)
        try:
            with Refusing(trail, self._tell, self._deadlines):
                return await self._check.of(auth, call)
        except PermissionDenied as error:
            await self.recorder.over(trail, call, error)
            raise

    async def models(self, auth: AuthContext) -> tuple[Candidate, ...]:
        """What the tenant may ask for, aliases and tiers included, sorted by id, each with who would be asked first."""
        tenant = await self._tenants.tenant(auth)
        return self._router.named(auth, tenant.entitlements)

    # The blocks around it.

    def _looked_through(self, ready: Ready, trail: Trail) -> None:
        """Note what was taken out of the answer, before the receipt is written."""
        trail.outcome = ready.answer.outcome(trail.outcome)
        self._tell.answered(trail.outcome, ready.answer.findings)

    def _told(
        self, ready: Ready, trail: Trail, call: ChatCall, spending: Held, answer: dict[str, Json]
    ) -> dict[str, Json]:
        """`answer` as the client is told it, with its receipt."""
        self._looked_through(ready, trail)
        return {**answer, "model": call.model, **trail.receipt(spending.total, answer.get("usage"))}

    def _reserved(self, ready: Ready, trail: Trail) -> Reserved:
        return Reserved(self.meter, ready, trail, self._lease, self._tell)
