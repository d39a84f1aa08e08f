"""What every Privacy adapter must show. Clauses: `ports.privacy`."""

from collections import Counter
from datetime import timedelta
from typing import Any, Final

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import MEGABYTE, SUCCEEDED, idempotency, intent, new_run, result
from conformance.harness import PrivacyHarness
from conformance.people import ACME, ACME_BEN, ACME_LAB, GLOBEX, NODE, PLATFORM
from ports.budget import Amount, Booking, UsageEvent, tokens_per_day
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from ports.ids import PrincipalId, TenantId, WorkerId
from ports.maintenance import MIN_RETENTION
from ports.privacy import (
    ERASED,
    ERASURE,
    EXPORTED,
    HELD,
    LIFTED,
    MAX_HOLDS,
    MAX_REASON_CHARS,
    SCOPE,
    Erased,
    Item,
    PrivacyPort,
)
from ports.request_log import READ, READ_CONTENT, RequestRecord, Written, new_request_id
from ports.run_state import Change, NewRun, Run
from ports.tenant import Entitlements, NewKey

ANN: Final = ACME.principal
OFFICER: Final = replace(ACME, principal=PrincipalId("usr_officer"), scopes=frozenset({SCOPE}))
OTHER_OFFICER: Final = replace(OFFICER, tenant=GLOBEX.tenant)
READER: Final = replace(ACME, scopes=frozenset({READ, READ_CONTENT, "admin:tenant"}))
WORKER: Final = WorkerId("wrk_privacy")
WHY: Final = "case 17/26"
OLD: Final = MIN_RETENTION + timedelta(days=3)
PATIENCE_CALLS: Final = 50


async def exported(port: PrivacyPort, subject: PrincipalId = ANN, *, officer: AuthContext = OFFICER) -> list[Item]:
    found: list[Item] = []
    cursor: str | None = None
    for _ in range(PATIENCE_CALLS):
        page = await port.export(officer, subject, cursor=cursor)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError(f"{PATIENCE_CALLS} pages did not come to an end")


def counted(items: list[Item]) -> dict[str, int]:
    """How many of each kind, but for the audit, which grows with each look."""
    return dict(Counter(item.kind for item in items if item.kind != "audit"))


async def erased(port: PrivacyPort, subject: PrincipalId = ANN, *, officer: AuthContext = OFFICER) -> Erased:
    """All of it: the sums over the calls."""
    total, cursor = Erased(), None
    for _ in range(PATIENCE_CALLS):
        done = await port.erase(officer, subject, cursor=cursor)
        total = Erased(
            runs=total.runs + done.runs,
            texts=total.texts + done.texts,
            keys=total.keys + done.keys,
            records=total.records + done.records,
        )
        cursor = done.cursor
        if cursor is None:
            return total
    raise AssertionError(f"{PATIENCE_CALLS} calls did not come to an end")


async def ended_run(harness: PrivacyHarness, auth: AuthContext = ACME, new: NewRun | None = None) -> Run:
    runs = await harness.runs()
    await runs.renew(NODE, WORKER, timedelta(hours=1))
    created = await runs.create(auth, new or new_run())
    run = await runs.claim(auth, created.run.id, WORKER)
    await runs.append(auth, run.id, run.epoch, Change(steps=(intent(1), result(1, MEGABYTE))))
    await runs.append(auth, run.id, run.epoch, SUCCEEDED)
    return await runs.load(auth, run.id)


async def asked(harness: PrivacyHarness, auth: AuthContext = ACME) -> RequestRecord:
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
        model_asked="fast",
        status=200,
        kept_until=at + timedelta(days=1),
    )
    await (await harness.requests()).write(auth, [Written(record=record, sealed=b"sealed")])
    return record


async def used(harness: PrivacyHarness, auth: AuthContext = ACME, *, request: str) -> None:
    ledger = await harness.ledger()
    account = tokens_per_day(1_000_000)
    hold = await ledger.hold(auth, Amount(tokens=10), on=(account,), lease=timedelta(minutes=1))
    event = UsageEvent(request=request, attempt=1, principal=auth.principal, session="chat-1", fresh_tokens=7)
    await ledger.book(auth, [Booking(hold=hold.id, events=(event,))])


async def keyed(harness: PrivacyHarness, auth: AuthContext = ACME) -> None:
    tenants = await harness.tenants()
    try:
        await tenants.create(PLATFORM, auth.tenant, name="A tenant", entitlements=Entitlements())
    except Conflict:
        pass  # there from another call
    administrator = replace(auth, scopes=frozenset({"admin:tenant"}))
    key = NewKey(principal=auth.principal, scopes=frozenset({"runs:read"}), secret_sha256=bytes(32))
    await tenants.issue_key(administrator, key)


async def all_of(harness: PrivacyHarness, auth: AuthContext) -> Run:
    """One of everything that is kept of a principal."""
    run = await ended_run(harness, auth)
    await asked(harness, auth)
    await used(harness, auth, request=f"req-{auth.tenant}-{auth.principal}-{auth.namespace}")
    await keyed(harness, auth)
    return run


ALL: Final = {"run": 1, "request": 1, "usage": 1, "key": 1}


@pytest.mark.anyio
class PrivacyContract(Contract):
    @clause("PRI-1")
    async def test_an_export_has_all_that_is_kept_of_its_subject_and_nothing_of_others(
        self, harness: PrivacyHarness
    ) -> None:
        port = await harness.open()
        run = await all_of(harness, ACME)
        for somebody in (ACME_BEN, GLOBEX):
            await all_of(harness, somebody)

        found = await exported(port)

        assert counted(found) == ALL
        told = next(item for item in found if item.kind == "run")
        assert told.id == run.id
        members: dict[str, Any] = told.data
        assert members["steps"][0]["output"] == MEGABYTE
        assert [event["type"] for event in members["events"]][-1] == "run.completed"
        assert {item.data["principal"] for item in found if item.kind in {"request", "usage", "key"}} == {ANN}
        assert "secret" not in str([item.data for item in found if item.kind == "key"])

    @clause("PRI-1")
    async def test_an_export_goes_through_every_namespace_of_the_tenant(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        here, lab = await ended_run(harness, ACME), await ended_run(harness, ACME_LAB)

        found = await exported(port)

        assert sorted(item.id for item in found if item.kind == "run") == sorted([here.id, lab.id])

    @clause("PRI-1", "PRI-8")
    async def test_a_long_export_gives_each_item_once(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        requests = [(await asked(harness)).id for _ in range(30)]
        runs = [(await ended_run(harness)).id for _ in range(30)]

        found = await exported(port)

        assert sorted(item.id for item in found if item.kind != "audit") == sorted(requests + runs)

    @clause("PRI-2")
    async def test_what_was_a_subjects_is_gone_or_nobodys(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        requests, runs, tenants = await harness.requests(), await harness.runs(), await harness.tenants()
        once = idempotency("used")
        run = await ended_run(harness, new=new_run(once))
        record = await asked(harness)
        await used(harness, request="req-1")
        await keyed(harness)

        done = await erased(port)

        assert done == Erased(runs=1, texts=1, keys=1, records=2)
        assert counted(await exported(port)) == {}
        with pytest.raises(NotFound):
            await runs.load(ACME, run.id)
        assert await runs.recall(ACME, once) is None
        with pytest.raises(NotFound):
            await requests.content(READER, record.id)
        assert (await requests.find(READER, record.id)).principal == ERASED
        [event] = await (await harness.ledger()).usage(ACME, "req-1")
        assert (event.principal, event.session, event.fresh_tokens) == (ERASED, "", 7)
        assert (await tenants.list_keys(READER, limit=10)).items == ()

    @clause("PRI-2", "PRI-7")
    async def test_what_is_others_stays(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        for somebody in (ACME, ACME_BEN, GLOBEX):
            await all_of(harness, somebody)

        await erased(port)

        assert counted(await exported(port, ACME_BEN.principal)) == ALL
        assert counted(await exported(port, officer=OTHER_OFFICER)) == ALL

    @clause("PRI-2")
    async def test_equal_bodies_of_another_subject_stay(self, harness: PrivacyHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        await ended_run(harness)
        bens = await ended_run(harness, ACME_BEN)

        await erased(port)

        [step] = await runs.steps(ACME_BEN, bens.id)
        assert step.output == MEGABYTE

    @clause("PRI-2", "PRI-8")
    async def test_an_erasure_begun_again_comes_to_the_same_end(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        await all_of(harness, ACME)
        await port.erase(OFFICER, ANN)

        await erased(await harness.reopen())

        assert counted(await exported(port)) == {}

    @clause("PRI-3")
    async def test_a_subject_with_an_open_run_keeps_everything(self, harness: PrivacyHarness) -> None:
        port, runs = await harness.open(), await harness.runs()
        await all_of(harness, ACME)
        await runs.create(ACME, new_run())

        with pytest.raises(Conflict) as refused:
            await port.erase(OFFICER, ANN)

        assert refused.value.code == "runs_open"
        assert counted(await exported(port)) == ALL | {"run": 2}

    @clause("PRI-4")
    @pytest.mark.parametrize("subject", [ANN, None], ids=["the subject", "all of the tenant"])
    async def test_what_is_held_is_not_erased(self, harness: PrivacyHarness, subject: PrincipalId | None) -> None:
        port = await harness.open()
        await all_of(harness, ACME)
        hold = await port.hold(OFFICER, subject, reason=WHY)

        with pytest.raises(Conflict) as refused:
            await port.erase(OFFICER, ANN)

        assert refused.value.code == "legal_hold"
        assert counted(await exported(port)) == ALL
        await port.lift(OFFICER, hold.id)
        await erased(port)
        assert counted(await exported(port)) == {}

    @clause("PRI-4")
    async def test_a_hold_comes_into_force_in_the_midst_of_an_erasure(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        await all_of(harness, ACME)
        first = await port.erase(OFFICER, ANN)
        await port.hold(OFFICER, ANN, reason=WHY)

        with pytest.raises(Conflict):
            await port.erase(OFFICER, ANN, cursor=first.cursor)

    @clause("PRI-4")
    async def test_a_hold_on_one_holds_nobody_else(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        for somebody in (ACME, ACME_BEN, GLOBEX):
            await all_of(harness, somebody)
        await port.hold(OFFICER, ANN, reason=WHY)

        for officer, subject in ((OFFICER, ACME_BEN.principal), (OTHER_OFFICER, ANN)):
            await erased(port, subject, officer=officer)
            assert counted(await exported(port, subject, officer=officer)) == {}

    @clause("PRI-4")
    async def test_upkeep_leaves_what_is_held(self, harness: PrivacyHarness) -> None:
        port, upkeep = await harness.open(), await harness.maintenance()
        for somebody in (ACME, ACME_BEN):
            await ended_run(harness, somebody)
            await asked(harness, somebody)
        await port.hold(OFFICER, ANN, reason=WHY)
        await harness.advance(OLD)

        for _ in range(PATIENCE_CALLS):
            if not (await upkeep.upkeep(NODE, retention=MIN_RETENTION)).more:
                break

        assert counted(await exported(port)) == {"run": 1, "request": 1}
        assert counted(await exported(port, ACME_BEN.principal)) == {}

    @clause("PRI-4")
    async def test_upkeep_goes_on_when_a_hold_is_lifted(self, harness: PrivacyHarness) -> None:
        port, upkeep = await harness.open(), await harness.maintenance()
        await ended_run(harness)
        await asked(harness)
        hold = await port.hold(OFFICER, None, reason=WHY)
        await harness.advance(OLD)
        await upkeep.upkeep(NODE, retention=MIN_RETENTION)

        await port.lift(OFFICER, hold.id)
        await upkeep.upkeep(NODE, retention=MIN_RETENTION)

        assert counted(await exported(port)) == {}

    @clause("PRI-5")
    async def test_holds_are_listed_until_they_are_lifted(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        first = await port.hold(OFFICER, ANN, reason=WHY)
        second = await port.hold(OFFICER, None, reason="another")

        assert await port.holds(OFFICER) == (first, second)
        assert (first.subject, first.reason, first.placed_by) == (ANN, WHY, OFFICER.principal)
        await port.lift(OFFICER, first.id)
        assert await (await harness.reopen()).holds(OFFICER) == (second,)

    @clause("PRI-5", "PRI-7")
    async def test_only_a_hold_of_ones_own_that_is_in_force_can_be_lifted(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        hold = await port.hold(OFFICER, ANN, reason=WHY)

        for officer, name in ((OTHER_OFFICER, hold.id), (OFFICER, "hld_none"), (OFFICER, "hld_" + "0" * 32)):
            with pytest.raises(NotFound):
                await port.lift(officer, name)
        assert await port.holds(OTHER_OFFICER) == ()
        assert await port.holds(OFFICER) == (hold,)
        await port.lift(OFFICER, hold.id)
        with pytest.raises(NotFound):
            await port.lift(OFFICER, hold.id)

    @clause("PRI-5")
    async def test_a_hold_needs_a_reason_that_says_something(self, harness: PrivacyHarness) -> None:
        port = await harness.open()

        for reason in ("", "  ", "x" * (MAX_REASON_CHARS + 1)):
            with pytest.raises(InvalidArgument):
                await port.hold(OFFICER, ANN, reason=reason)

        assert await port.holds(OFFICER) == ()
        await port.hold(OFFICER, ANN, reason="x" * MAX_REASON_CHARS)

    @clause("PRI-5")
    async def test_holds_have_a_limit(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        holds = [await port.hold(OFFICER, ANN, reason=WHY) for _ in range(MAX_HOLDS)]

        with pytest.raises(Conflict) as refused:
            await port.hold(OFFICER, ANN, reason=WHY)

        assert refused.value.code == "too_many_holds"
        await port.lift(OFFICER, holds[0].id)
        await port.hold(OFFICER, ANN, reason=WHY)

    @clause("PRI-6")
    async def test_the_audit_tells_of_each_once(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        await all_of(harness, ACME)

        await exported(port)
        hold = await port.hold(OFFICER, None, reason=WHY)
        await port.lift(OFFICER, hold.id)
        await erased(port)

        told = [(EXPORTED, ANN), (HELD, "*"), (LIFTED, "*"), (ERASURE, ANN)]
        assert await harness.audit(OFFICER) == told
        assert await harness.audit(OTHER_OFFICER) == []
        kept = [item.data["action"] for item in await exported(port) if item.kind == "audit"]
        assert {EXPORTED, ERASURE} <= set(kept)

    @clause("PRI-6")
    async def test_what_was_refused_is_not_told_as_done(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        await port.hold(OFFICER, ANN, reason=WHY)

        with pytest.raises(Conflict):
            await port.erase(OFFICER, ANN)

        assert await harness.audit(OFFICER) == [(HELD, ANN)]

    @clause("PRI-7")
    async def test_all_need_the_scope(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        await all_of(harness, ACME)
        hold = await port.hold(OFFICER, ACME_BEN.principal, reason=WHY)
        anybody = replace(OFFICER, scopes=frozenset({"runs:read", "audit:read", "admin:platform"}))

        for refused in (
            port.export(anybody, ANN),
            port.erase(anybody, ANN),
            port.hold(anybody, ANN, reason=WHY),
            port.lift(anybody, hold.id),
            port.holds(anybody),
        ):
            with pytest.raises(PermissionDenied):
                await refused

        assert counted(await exported(port)) == ALL
        assert await port.holds(OFFICER) == (hold,)

    @clause("PRI-8")
    @pytest.mark.parametrize("cursor", ["", "nonsense", "WyJydW5zIixbXV0"])
    async def test_a_cursor_of_something_else_is_refused(self, harness: PrivacyHarness, cursor: str) -> None:
        port = await harness.open()

        for refused in (port.export(OFFICER, ANN, cursor=cursor), port.erase(OFFICER, ANN, cursor=cursor)):
            with pytest.raises(InvalidArgument):
                await refused

    @clause("PRI-7")
    async def test_a_tenant_without_anything_has_nothing(self, harness: PrivacyHarness) -> None:
        port = await harness.open()
        nobody = replace(OFFICER, tenant=TenantId("tnt_empty"))

        assert counted(await exported(port, officer=nobody)) == {}
        assert await erased(port, officer=nobody) == Erased()
