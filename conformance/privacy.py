"""What every Privacy adapter must show. Clauses: `ports.privacy`."""

from datetime import timedelta
from typing import Any, Final, cast

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import MEGABYTE, SUCCEEDED, idempotency, intent, new_run, result
from conformance.harness import PrivacyHarness
from conformance.people import ACME, ACME_BEN, ACME_LAB, GLOBEX, NODE, PLATFORM
from ports.audit import ERASED as AUDIT_ERASED
from ports.audit import READ as READ_AUDIT
from ports.audit import Link, Note
from ports.audit_rules import Check
from ports.budget import Amount, Booking, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.context import SCOPES, AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from ports.ids import KeyId, PrincipalId, RunId, TenantId, WorkerId
from ports.maintenance import MIN_RETENTION
from ports.privacy import (
    BEGUN,
    DONE,
    ERASED,
    HELD,
    MAX_HOLDS,
    MAX_REASON_CHARS,
    MAX_SUBJECT_CHARS,
    RELEASED,
    RETAINED,
    Counts,
    DataClass,
    Erasure,
    PrivacyPort,
    erased_name,
)
from ports.reply_journal import Done, Won
from ports.request_log import READ, READ_CONTENT, RequestRecord, Written, new_request_id
from ports.run_state import Change, NewRun, Run
from ports.tenant import Entitlements, NewKey

ANN: Final = ACME.principal
BEN: Final = ACME_BEN.principal
TENANT: Final = ACME.tenant
READER: Final = replace(ACME, principal=PrincipalId("usr_reader"), scopes=frozenset({READ, READ_CONTENT, READ_AUDIT}))
OTHERS: Final = replace(ACME, scopes=SCOPES - {"admin:platform"})
HUB: Final = replace(GLOBEX, principal=PrincipalId("svc_hub"))
"""Of another tenant."""
WORKER: Final = WorkerId("wrk_privacy")
SECRET: Final = bytes(32)
WHY: Final = "case 17/26"
OLD: Final = MIN_RETENTION + timedelta(days=3)
NODE_KEEPS: Final = timedelta(days=3_000)
LEASE: Final = timedelta(minutes=1)
PATIENCE_CALLS: Final = 50


async def seeded(harness: PrivacyHarness) -> PrivacyPort:
    """The port, with two tenants."""
    tenants = await harness.tenants()
    for tenant in (ACME.tenant, GLOBEX.tenant):
        await tenants.create(PLATFORM, tenant, name=tenant, entitlements=Entitlements())
    return await harness.open()


async def erased(port: PrivacyPort, subject: PrincipalId = ANN, *, tenant: TenantId = TENANT) -> Erasure:
    for _ in range(PATIENCE_CALLS):
        done = await port.erase(PLATFORM, tenant, subject)
        if done.done:
            return done
    raise AssertionError(f"{PATIENCE_CALLS} calls did not come to an end")


async def ended_run(harness: PrivacyHarness, auth: AuthContext = ACME, new: NewRun | None = None) -> Run:
    runs = await harness.runs()
    await runs.renew(NODE, WORKER, timedelta(hours=1))
    created = await runs.create(auth, new or new_run())
    run = await runs.claim(auth, created.run.id, WORKER)
    await runs.append(auth, run.id, run.epoch, Change(steps=(intent(1), result(1, MEGABYTE))))
    await runs.append(auth, run.id, run.epoch, SUCCEEDED)
    return await runs.load(auth, run.id)


async def asked(harness: PrivacyHarness, auth: AuthContext = ACME, *, kept: timedelta = timedelta(days=60)) -> str:
    """A request to a model with its texts."""
    at = await harness.now()
    at = at.replace(microsecond=at.microsecond // 1_000 * 1_000)
    record = RequestRecord(
        id=new_request_id(at),
        at=at,
        namespace=auth.namespace,
        principal=auth.principal,
        correlation_id="corr",
        route="/v1/chat/completions",
        model_asked="my own words",
        status=200,
        kept_until=at + kept,
    )
    await (await harness.requests()).write(auth, [Written(record=record, sealed=b"sealed")])
    return record.id


async def used(harness: PrivacyHarness, auth: AuthContext = ACME) -> str:
    ledger = await harness.ledger()
    hold = await ledger.hold(auth, Amount(tokens=10), on=(tokens_per_day(1_000_000),), lease=LEASE)
    request = f"req-{hold.id}"
    event = UsageEvent(
        request=request, attempt=1, principal=auth.principal, session="chat-1", correlation_id="c", fresh_tokens=7
    )
    await ledger.book(auth, [Booking(hold=hold.id, events=(event,), end=True)])
    return request


async def keyed(harness: PrivacyHarness, auth: AuthContext = ACME) -> KeyId:
    key = NewKey(principal=auth.principal, scopes=frozenset({"runs:read"}), secret_sha256=SECRET)
    return (await (await harness.tenants()).issue_key(replace(auth, scopes=SCOPES), key)).id


class Kept:
    """One of everything that is kept of a principal, and whether it is still there."""

    def __init__(self, harness: PrivacyHarness, auth: AuthContext) -> None:
        self._harness = harness
        self._auth = auth
        self._name = f"of {auth.principal} in {auth.namespace}"
        self.run = RunId("")
        self.request = self.usage = ""
        self.key = KeyId("")

    async def put(self) -> "Kept":
        auth, harness = self._auth, self._harness
        self.run = (await ended_run(harness, auth)).id
        self.request = await asked(harness, auth)
        self.usage = await used(harness, auth)
        self.key = await keyed(harness, auth)
        await (await harness.memory()).put(auth, self._name, "remember")
        replies = await harness.replies()
        won = await replies.open(auth, self._name, "digest", lease=LEASE)
        assert isinstance(won, Won)
        await replies.complete(auth, won.ticket, "an answer")
        await (await harness.audit_log()).note(auth, Note(action="thing.done", subject="thing"))
        return self

    async def left(self) -> set[str]:
        auth, harness, found = self._auth, self._harness, set[str]()
        reader = replace(READER, tenant=auth.tenant, namespace=auth.namespace)
        try:
            [step] = await (await harness.runs()).steps(auth, self.run)
            assert step.output == MEGABYTE
            found.add("run")
        except (NotFound, ValueError):
            pass
        requests = await harness.requests()
        try:
            if (await requests.find(reader, self.request)).principal == auth.principal:
                found.add("request")
        except NotFound:
            pass
        try:
            await requests.content(reader, self.request)
            found.add("text")
        except NotFound:
            pass
        if [one for one in await (await harness.ledger()).usage(auth, self.usage) if one.principal == auth.principal]:
            found.add("usage")
        tenants = await harness.tenants()
        if await tenants.find_key(self.key, SECRET) is not None:
            found.add("key")
        if await (await harness.memory()).get(auth, self._name) is not None:
            found.add("memory")
        if isinstance(await (await harness.replies()).open(auth, self._name, "digest", lease=LEASE), Done):
            found.add("reply")
        links = await every_link(harness, auth.tenant)
        if [one for one in links if one.entry is not None and one.entry.principal == auth.principal]:
            found.add("audit")
        return found


ALL: Final = {"run", "request", "text", "usage", "key", "memory", "reply", "audit"}


async def every_link(harness: PrivacyHarness, tenant: TenantId = TENANT) -> tuple[Link, ...]:
    return await (await harness.audit_log()).chain(replace(READER, tenant=tenant), tenant, after=0, limit=5_000)


async def told(harness: PrivacyHarness, *actions: str) -> list[tuple[str, str, str]]:
    """Who was told of what in the tenant's audit, of these actions."""
    links = await every_link(harness)
    entries = [one.entry for one in links if one.entry is not None and one.entry.action in actions]
    return [(one.action, one.subject, one.principal) for one in entries]


async def kept_up(harness: PrivacyHarness, retention: timedelta = NODE_KEEPS) -> None:
    upkeep = await harness.maintenance()
    for _ in range(PATIENCE_CALLS):
        if not (await upkeep.upkeep(NODE, retention=retention)).more:
            return
    raise AssertionError(f"upkeep did not come to an end in {PATIENCE_CALLS} calls")


@pytest.mark.anyio
class PrivacyContract(Contract):
    @clause("PRI-1", "PRI-4", "PRI-10")
    async def test_all_that_is_a_subjects_goes_and_nothing_of_others(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        anns, in_lab = await Kept(harness, ACME).put(), await Kept(harness, ACME_LAB).put()
        others = [await Kept(harness, auth).put() for auth in (ACME_BEN, GLOBEX)]
        before = [await one.left() for one in (anns, in_lab, *others)]

        done = await erased(port)

        assert before == [ALL] * 4
        assert [await one.left() for one in (anns, in_lab)] == [set(), set()]
        assert [await one.left() for one in others] == [ALL, ALL]
        assert replace(done.counts, audit=0) == Counts(
            runs=2, texts=2, replies=2, memory=2, keys=2, requests=2, usage=2
        )

    @clause("PRI-1")
    async def test_requests_and_usage_still_count_and_are_nobodys(self, harness: PrivacyHarness) -> None:
        port, requests = await seeded(harness), await harness.requests()
        once = idempotency("used")
        await ended_run(harness, new=new_run(once))
        request, usage = await asked(harness), await used(harness)

        await erased(port)

        record = await requests.find(READER, request)
        assert (record.principal, record.correlation_id, record.model_asked) == (ERASED, "", "")
        assert (record.route, record.status) == ("/v1/chat/completions", 200)
        [event] = await (await harness.ledger()).usage(ACME, usage)
        assert (event.principal, event.session, event.correlation_id, event.fresh_tokens) == (ERASED, "", "", 7)
        assert await (await harness.runs()).recall(ACME, once) is None

    @clause("PRI-2")
    async def test_the_audit_says_nothing_of_the_subject_and_its_chain_holds(self, harness: PrivacyHarness) -> None:
        port, log = await seeded(harness), await harness.audit_log()
        await log.note(ACME, Note(action="thing.done", subject="thing"))
        await log.note(ACME_BEN, Note(action="thing.shown", subject=ANN))
        await log.note(ACME_BEN, Note(action="thing.done", subject="another"))

        done = await erased(port)

        links = await every_link(harness)
        entries = [one.entry for one in links if one.entry is not None]
        assert not [one for one in entries if ANN in {one.principal, one.subject}]
        assert [one.subject for one in entries if one.principal == BEN] == ["another"]
        assert done.counts.audit == 2
        assert await told(harness, BEGUN, DONE) == [
            (action, erased_name(TENANT, ANN), PLATFORM.principal) for action in (BEGUN, DONE)
        ]
        check = Check(TENANT, {})
        check.take(links)
        verdict = check.verdict(await log.head(READER, TENANT))
        assert (verdict.bad, verdict.erased) == (None, 2)

    @clause("PRI-2", "PRI-4")
    async def test_the_audit_keeps_what_a_namesake_of_another_tenant_did(self, harness: PrivacyHarness) -> None:
        port, log = await seeded(harness), await harness.audit_log()
        namesake, there = replace(PLATFORM, principal=ANN), HUB.acting_for(TENANT)
        await log.note(ACME, Note(action="thing.done", subject="thing"))
        await log.note(namesake, Note(action="thing.seen", subject="thing"), tenant=TENANT)
        await log.note(there, Note(action="thing.done", subject="thing"))

        done = [await erased(port), await erased(port, there.principal)]

        entries = [one.entry for one in await every_link(harness) if one.entry is not None]
        things = [(one.actor_tenant, one.principal) for one in entries if one.action.startswith("thing.")]
        assert things == [(namesake.tenant, ANN)]
        assert [one.counts.audit for one in done] == [1, 1]

    @clause("PRI-3")
    async def test_whoever_repeats_it_brings_it_to_its_end(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        kept = await Kept(harness, ACME).put()
        first = await port.erase(PLATFORM, TENANT, ANN)

        again = await harness.reopen()
        last = first if first.done else await erased(again)

        assert await kept.left() == set()
        assert (last.name, last.status) == (erased_name(TENANT, ANN), "erased")
        assert last.counts.runs == 1
        assert (first.begun_at, first.name) == (last.begun_at, last.name)
        assert await port.erasures(PLATFORM, TENANT) == (last,)
        assert len(await told(harness, BEGUN)) == 1

    @clause("PRI-3")
    async def test_asked_again_it_looks_again(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        await Kept(harness, ACME).put()
        await erased(port)
        late = await Kept(harness, ACME).put()

        done = await erased(port)

        assert await late.left() == set()
        assert done.counts.runs == 1

    @clause("PRI-3")
    async def test_nothing_of_a_subject_that_never_was_is_erased(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)

        done = await erased(port, PrincipalId("usr_nobody"))

        assert (done.counts, done.done) == (Counts(), True)

    @clause("PRI-3")
    async def test_erasings_that_are_not_done_come_first(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        for name in ("usr_one", "usr_two"):
            await erased(port, PrincipalId(name))
            await harness.advance(timedelta(seconds=1))

        first, second = await port.erasures(PLATFORM, TENANT)

        assert [first.name, second.name] == [erased_name(TENANT, name) for name in ("usr_two", "usr_one")]
        assert await port.erasures(PLATFORM, TENANT, limit=1) == (first,)
        assert await port.erasures(PLATFORM, GLOBEX.tenant) == ()
        with pytest.raises(InvalidArgument):
            await port.erasures(PLATFORM, TENANT, limit=0)

    @clause("PRI-5")
    async def test_a_subject_is_barred_from_the_first_call_on_and_for_good(self, harness: PrivacyHarness) -> None:
        port, tenants = await seeded(harness), await harness.tenants()
        key = await keyed(harness)

        first = await port.erase(PLATFORM, TENANT, ANN)
        begun = await tenants.standing(ACME)
        found = None if first.done else await tenants.find_key(key, SECRET)
        await erased(port)
        done = await tenants.standing(ACME)
        names = [one.id for one in (await tenants.list_principals(replace(ACME, scopes=SCOPES), limit=10)).items]
        await tenants.put_principal(replace(ACME, scopes=SCOPES), ANN, status="active")
        again = await tenants.standing(ACME)

        states = [None if one.principal is None else one.principal.status for one in (begun, done, again)]
        assert states == ["disabled", "disabled", "active"]
        assert found is None or (found.holder is not None and found.holder.status == "disabled")
        assert names == [erased_name(TENANT, ANN)]
        for other in (ACME_BEN, GLOBEX):
            assert (await tenants.standing(other)).principal is None

    @clause("PRI-5")
    async def test_a_key_of_whoever_was_erased_is_nobodys_way_in(self, harness: PrivacyHarness) -> None:
        port, tenants = await seeded(harness), await harness.tenants()
        await erased(port)
        key = await keyed(harness)

        found = await tenants.find_key(key, SECRET)
        await tenants.put_principal(replace(ACME, scopes=SCOPES), ANN, status="active")
        again = await tenants.find_key(key, SECRET)

        holders = [one.holder for one in (found, again) if one is not None and one.holder is not None]
        assert [(one.id, one.status) for one in holders] == [(ANN, "disabled"), (ANN, "active")]

    @clause("PRI-5")
    async def test_who_acts_from_elsewhere_and_was_erased_acts_no_more(self, harness: PrivacyHarness) -> None:
        port, tenants = await seeded(harness), await harness.tenants()
        there = HUB.acting_for(TENANT).principal
        await tenants.let_act(PLATFORM, TENANT, actor_tenant=HUB.tenant, principal=HUB.principal)

        await port.erase(PLATFORM, TENANT, there)
        begun = await tenants.acting(HUB, TENANT)
        await erased(port, there)
        done = await tenants.acting(HUB, TENANT)
        await tenants.put_principal(replace(ACME, scopes=SCOPES), there, status="active")
        again = await tenants.acting(HUB, TENANT)

        states = [None if one.principal is None else one.principal.status for one in (begun, done, again)]
        assert states == ["disabled", "disabled", "active"]

    @clause("PRI-6")
    async def test_a_subject_with_an_open_run_keeps_everything(self, harness: PrivacyHarness) -> None:
        port, runs = await seeded(harness), await harness.runs()
        kept = await Kept(harness, ACME).put()
        run = (await runs.create(ACME, new_run())).run

        with pytest.raises(Conflict) as refused:
            await port.erase(PLATFORM, TENANT, ANN)

        assert refused.value.code == "runs_open"
        assert await kept.left() == ALL
        assert await port.erasures(PLATFORM, TENANT) == ()
        assert (await (await harness.tenants()).standing(ACME)).principal is None
        await runs.cancel(ACME, run.id, reason="over")
        await erased(port)
        assert await kept.left() == set()

    @clause("PRI-7")
    @pytest.mark.parametrize("subject", [ANN, None], ids=["the subject", "all of the tenant"])
    async def test_what_is_held_is_not_erased(self, harness: PrivacyHarness, subject: PrincipalId | None) -> None:
        port = await seeded(harness)
        kept = await Kept(harness, ACME).put()
        hold = await port.hold(PLATFORM, TENANT, subject, reason=WHY)

        with pytest.raises(Conflict) as refused:
            await port.erase(PLATFORM, TENANT, ANN)

        assert refused.value.code == "legal_hold"
        assert await kept.left() == ALL
        assert await told(harness, BEGUN) == []
        await port.release(PLATFORM, TENANT, hold.id)
        await erased(port)
        assert await kept.left() == set()

    @clause("PRI-7")
    async def test_a_hold_comes_into_force_in_the_midst_of_an_erasing(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        await Kept(harness, ACME).put()
        await port.erase(PLATFORM, TENANT, ANN)
        await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

        with pytest.raises(Conflict):
            await port.erase(PLATFORM, TENANT, ANN)

    @clause("PRI-7")
    async def test_a_hold_on_one_holds_nobody_else(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        bens, elsewhere = await Kept(harness, ACME_BEN).put(), await Kept(harness, GLOBEX).put()
        await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

        await erased(port, BEN)
        await erased(port, tenant=GLOBEX.tenant)

        assert await bens.left() == await elsewhere.left() == set()

    @clause("PRI-7")
    async def test_upkeep_leaves_what_is_held(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        anns, bens = await Kept(harness, ACME).put(), await Kept(harness, ACME_BEN).put()
        await port.hold(PLATFORM, TENANT, ANN, reason=WHY)
        await port.retain(
            PLATFORM, TENANT, {"runs": 7, "requests": 7, "texts": 1, "memory": 1, "usage": 30, "audit": 30}
        )
        await harness.advance(timedelta(days=40))

        await kept_up(harness, MIN_RETENTION)

        # Replies are a cache of 7 days, and no record.
        assert await anns.left() == ALL - {"reply"}
        assert await bens.left() == {"key", "audit"}

    @clause("PRI-7")
    async def test_upkeep_goes_on_when_a_hold_is_released(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        anns = await Kept(harness, ACME).put()
        hold = await port.hold(PLATFORM, TENANT, None, reason=WHY)
        await port.retain(PLATFORM, TENANT, {"memory": 1, "usage": 30, "audit": 30})
        await harness.advance(timedelta(days=40))
        await kept_up(harness, MIN_RETENTION)
        before = await anns.left()

        await port.release(PLATFORM, TENANT, hold.id)
        await kept_up(harness, MIN_RETENTION)

        assert before == ALL - {"reply"}
        assert await anns.left() == {"key"}

    @clause("PRI-7")
    async def test_the_audit_keeps_what_is_held(self, harness: PrivacyHarness) -> None:
        port, log = await seeded(harness), await harness.audit_log()
        await log.note(ACME, Note(action="thing.done", subject="thing"))
        await log.note(ACME_BEN, Note(action="thing.shown", subject=ANN))
        await log.note(ACME_BEN, Note(action="thing.done", subject="another"))
        await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

        await log.erase(PLATFORM, TENANT, first=1, last=1_000)

        entries = [one.entry for one in await every_link(harness) if one.entry is not None]
        kept = [one.subject for one in entries if one.action.startswith("thing.")]
        assert kept == ["thing", ANN]

    @clause("PRI-7")
    async def test_a_tenant_of_which_something_is_held_is_not_erased(self, harness: PrivacyHarness) -> None:
        port, tenants, administration = await seeded(harness), await harness.tenants(), await harness.administration()
        kept = await Kept(harness, ACME).put()
        hold = await port.hold(PLATFORM, TENANT, BEN, reason=WHY)
        await tenants.set_status(PLATFORM, TENANT, "disabled")

        with pytest.raises(Conflict) as refused:
            await administration.erase(PLATFORM, TENANT, export_sha256="sha256:x", limit=10)

        assert refused.value.code == "legal_hold"
        assert await kept.left() == ALL
        assert await administration.exported(PLATFORM, TENANT) is None
        await port.release(PLATFORM, TENANT, hold.id)
        await administration.erase(PLATFORM, TENANT, export_sha256="sha256:x", limit=10)

    @clause("PRI-8")
    async def test_holds_are_listed_until_they_are_released(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        first = await port.hold(PLATFORM, TENANT, ANN, reason=WHY)
        second = await port.hold(PLATFORM, TENANT, None, reason="another")

        assert await port.holds(PLATFORM, TENANT) == (first, second)
        assert (first.subject, first.reason, first.placed_by) == (ANN, WHY, PLATFORM.principal)
        assert await port.release(PLATFORM, TENANT, first.id) == first
        assert await (await harness.reopen()).holds(PLATFORM, TENANT) == (second,)

    @clause("PRI-8", "PRI-11")
    async def test_a_hold_is_placed_once_by_a_request(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        first = await port.hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-1")

        assert await (await harness.reopen()).hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-1") == first
        for subject, reason in ((BEN, WHY), (None, WHY), (ANN, "another")):
            with pytest.raises(Conflict) as refused:
                await port.hold(PLATFORM, TENANT, subject, reason=reason, request="key-1")
            assert refused.value.code == "idempotency_key_reused"
        colleague = replace(PLATFORM, principal=PrincipalId("usr_colleague"))
        others = [
            await port.hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-2"),
            await port.hold(colleague, TENANT, ANN, reason=WHY, request="key-1"),
        ]
        assert await port.holds(PLATFORM, TENANT) == (first, *others)
        assert len(await told(harness, HELD)) == 3

    @clause("PRI-8", "PRI-11")
    async def test_a_request_whose_hold_was_released_holds_nothing(self, harness: PrivacyHarness) -> None:
        """And says so: nobody may believe that something is held."""
        port = await seeded(harness)
        first = await port.hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-1")
        await port.release(PLATFORM, TENANT, first.id)

        for again in (port, await harness.reopen()):
            with pytest.raises(Conflict) as refused:
                await again.hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-1")
            assert (refused.value.code, refused.value.details) == ("hold_released", {"hold_id": first.id})
        with pytest.raises(Conflict) as refused:
            await port.hold(PLATFORM, TENANT, BEN, reason=WHY, request="key-1")

        assert refused.value.code == "idempotency_key_reused"
        assert await port.holds(PLATFORM, TENANT) == ()
        assert len(await told(harness, HELD)) == 1
        second = await port.hold(PLATFORM, TENANT, ANN, reason=WHY, request="key-2")
        assert await port.holds(PLATFORM, TENANT) == (second,)

    @clause("PRI-8", "PRI-10")
    async def test_only_a_hold_of_the_tenant_that_is_in_force_can_be_released(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        hold = await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

        for tenant, name in ((GLOBEX.tenant, hold.id), (TENANT, "hld_none"), (TENANT, "hld_" + "0" * 32)):
            with pytest.raises(NotFound):
                await port.release(PLATFORM, tenant, name)
        assert await port.holds(PLATFORM, GLOBEX.tenant) == ()
        assert await port.holds(PLATFORM, TENANT) == (hold,)
        await port.release(PLATFORM, TENANT, hold.id)
        with pytest.raises(NotFound):
            await port.release(PLATFORM, TENANT, hold.id)

    @clause("PRI-8")
    async def test_a_hold_says_whom_and_why(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)

        for reason in ("", "  ", "x" * (MAX_REASON_CHARS + 1), "a\x00b"):
            with pytest.raises(InvalidArgument):
                await port.hold(PLATFORM, TENANT, ANN, reason=reason)
        for subject in ("", "x" * (MAX_SUBJECT_CHARS + 1), "a\nb", "\ud800", ERASED, erased_name(TENANT, ANN)):
            with pytest.raises(InvalidArgument):
                await port.hold(PLATFORM, TENANT, PrincipalId(subject), reason=WHY)
            with pytest.raises(InvalidArgument):
                await port.erase(PLATFORM, TENANT, PrincipalId(subject))

        assert await port.holds(PLATFORM, TENANT) == ()
        await port.hold(PLATFORM, TENANT, ANN, reason="x" * MAX_REASON_CHARS)

    @clause("PRI-8")
    async def test_holds_have_a_limit(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        holds = [await port.hold(PLATFORM, TENANT, ANN, reason=WHY) for _ in range(MAX_HOLDS)]

        with pytest.raises(Conflict) as refused:
            await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

        assert refused.value.code == "too_many_holds"
        await port.release(PLATFORM, TENANT, holds[0].id)
        await port.hold(PLATFORM, TENANT, ANN, reason=WHY)

    @clause("PRI-9")
    @pytest.mark.parametrize(
        ("name", "days", "gone"),
        [
            ("runs", 7, "run"), ("requests", 7, "request"), ("texts", 1, "text"), ("usage", 30, "usage"),
            ("memory", 1, "memory"), ("audit", 30, "audit"),
        ],
    )  # fmt: skip
    async def test_upkeep_removes_what_its_tenant_keeps_no_longer(
        self, harness: PrivacyHarness, name: DataClass, days: int, gone: str
    ) -> None:
        port = await seeded(harness)
        kept, elsewhere = await Kept(harness, ACME).put(), await Kept(harness, GLOBEX).put()
        await port.retain(PLATFORM, TENANT, {name: days})
        await harness.advance(timedelta(days=days - 1) + timedelta(hours=1))
        await kept_up(harness)
        before = await kept.left()
        # Runs and requests take their keys for 7 days with them; of either, what is younger stays.
        await harness.advance(timedelta(days=2))

        await kept_up(harness)

        assert gone in before
        expected = {gone, "text"} if name == "requests" else {gone}
        forgotten = {"reply"} if days >= 7 else set()  # type: set[str]
        assert await kept.left() == ALL - expected - forgotten
        assert await elsewhere.left() == ALL - forgotten

    @clause("PRI-9")
    async def test_what_usage_and_the_audit_said_goes_and_they_stay(self, harness: PrivacyHarness) -> None:
        port, log = await seeded(harness), await harness.audit_log()
        usage = await used(harness)
        await log.note(ACME, Note(action="thing.done", subject="thing"))
        await erased(port, BEN)
        await port.retain(PLATFORM, TENANT, {"usage": 30, "audit": 30})
        await harness.advance(timedelta(days=40))

        await kept_up(harness)
        await kept_up(harness)

        [event] = await (await harness.ledger()).usage(ACME, usage)
        assert (event.principal, event.session, event.fresh_tokens) == (ERASED, "", 7)
        links = await every_link(harness)
        actions = [one.entry.action for one in links if one.entry is not None]
        assert actions == [BEGUN, DONE, AUDIT_ERASED]
        check = Check(TENANT, {})
        check.take(links)
        assert check.verdict(await log.head(READER, TENANT)).good

    @clause("PRI-9")
    async def test_a_rule_never_keeps_for_longer_than_the_node(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        kept = await Kept(harness, ACME).put()
        await port.retain(PLATFORM, TENANT, {"runs": 3_650, "requests": 3_650})
        await harness.advance(OLD)

        await kept_up(harness, MIN_RETENTION)

        assert not {"run", "request"} & await kept.left()

    @clause("PRI-9")
    async def test_rules_are_given_back_and_taken_back(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        await port.retain(PLATFORM, TENANT, {"audit": 365, "runs": 30})
        await port.retain(PLATFORM, TENANT, {"runs": 14, "memory": None})

        assert await port.retention(PLATFORM, TENANT) == {"runs": 14, "audit": 365}
        await port.retain(PLATFORM, TENANT, {"audit": None})
        assert await (await harness.reopen()).retention(PLATFORM, TENANT) == {"runs": 14}
        assert await port.retention(PLATFORM, GLOBEX.tenant) == {}
        for wrong in ({"runs": 6}, {"audit": 29}, {"texts": 0}, {"memory": 3_651}, {"rain": 7}):
            with pytest.raises(InvalidArgument):
                await port.retain(PLATFORM, TENANT, cast("Any", {"usage": 40, **wrong}))
        assert await port.retention(PLATFORM, TENANT) == {"runs": 14}

    @clause("PRI-10")
    async def test_nobody_but_the_platform_may(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)
        kept = await Kept(harness, ACME).put()
        hold = await port.hold(PLATFORM, TENANT, BEN, reason=WHY)

        for refused in (
            port.erase(OTHERS, TENANT, ANN),
            port.erasures(OTHERS, TENANT),
            port.hold(OTHERS, TENANT, ANN, reason=WHY),
            port.release(OTHERS, TENANT, hold.id),
            port.holds(OTHERS, TENANT),
            port.retain(OTHERS, TENANT, {"runs": 7}),
            port.retention(OTHERS, TENANT),
        ):
            with pytest.raises(PermissionDenied):
                await cast("Any", refused)

        assert await kept.left() == ALL
        assert await port.holds(PLATFORM, TENANT) == (hold,)
        assert await port.retention(PLATFORM, TENANT) == {}

    @clause("PRI-10")
    async def test_a_tenant_that_is_not_there_is_not_found(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)

        for name in ("tnt_nobody", "no id", "a\x00"):
            tenant = TenantId(name)
            for absent in (
                port.erase(PLATFORM, tenant, ANN),
                port.erasures(PLATFORM, tenant),
                port.hold(PLATFORM, tenant, ANN, reason=WHY),
                port.release(PLATFORM, tenant, "hld_" + "0" * 32),
                port.holds(PLATFORM, tenant),
                port.retain(PLATFORM, tenant, {"runs": 7}),
                port.retention(PLATFORM, tenant),
            ):
                with pytest.raises(NotFound):
                    await cast("Any", absent)

    @clause("PRI-11")
    async def test_the_audit_tells_of_each_change_once(self, harness: PrivacyHarness) -> None:
        port = await seeded(harness)

        one = await port.hold(PLATFORM, TENANT, BEN, reason=WHY)
        everybody = await port.hold(PLATFORM, TENANT, None, reason=WHY)
        for hold in (one, everybody):
            await port.release(PLATFORM, TENANT, hold.id)
        for _ in range(2):
            await port.retain(PLATFORM, TENANT, {"runs": 7})

        assert await told(harness, HELD, RELEASED, RETAINED) == [
            (action, subject, PLATFORM.principal)
            for action, subject in (
                (HELD, BEN), (HELD, "*"), (RELEASED, BEN), (RELEASED, "*"), (RETAINED, TENANT)
            )
        ]  # fmt: skip
