"""What every audit must show. Clauses: `ports.audit`."""

from datetime import timedelta
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import AuditHarness
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.audit import MAX_DETAIL_CHARS, MAX_TEXT_CHARS, READ, SIGN, AuditLog, Entry, Head, Link, Note, Wanted
from ports.audit_rules import FIRST_HASH, Check, link
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, PermissionDenied
from ports.ids import PrincipalId

READER: Final = replace(ACME, scopes=frozenset({READ}))
ELSEWHERE: Final = replace(GLOBEX, scopes=frozenset({READ}))
SIGNER: Final = replace(PLATFORM, scopes=frozenset({SIGN}))
EVERYTHING: Final = Wanted()


def note(action: str = "thing.do", *, subject: str = "thing_1", detail: str = "") -> Note:
    return Note(action=action, subject=subject, detail=detail)


async def noted(log: AuditLog, *actions: str, auth: AuthContext = ACME) -> None:
    for action in actions:
        await log.note(auth, note(action))


async def every_link(log: AuditLog, auth: AuthContext = READER, *, limit: int = 1_000) -> list[Link]:
    found: list[Link] = []
    while part := await log.chain(auth, auth.tenant, after=len(found), limit=limit):
        found += part
    return found


def actions(links: list[Link]) -> list[str]:
    return ["gone" if one.entry is None else one.entry.action for one in links]


async def query(log: AuditLog, wanted: Wanted, *, limit: int = 200) -> list[str]:
    page = await log.query(READER, ACME.tenant, wanted, limit=limit)
    return actions(list(page.items))


def entry_of(one: Link) -> Entry:
    assert one.entry is not None
    return one.entry


@pytest.mark.anyio
class AuditContract(Contract):
    @clause("AUD-1")
    async def test_an_entry_says_what_was_noted_who_did_it_and_when(self, harness: AuditHarness) -> None:
        log, before = await harness.open(), await harness.now()
        asked = Note(action="key.revoke", subject="key_ü", outcome="denied", detail='why, "quoted" 🦭\n')

        await log.note(ACME, asked)
        [one] = await log.chain(READER, ACME.tenant, after=0, limit=9)

        entry = entry_of(one)
        assert (entry.action, entry.subject, entry.outcome, entry.detail) == (
            asked.action,
            asked.subject,
            asked.outcome,
            asked.detail,
        )
        assert (entry.tenant, entry.actor_tenant, entry.principal) == (ACME.tenant, ACME.tenant, ACME.principal)
        assert (entry.namespace, entry.correlation_id) == (ACME.namespace, ACME.trace.correlation_id)
        assert before <= entry.at <= await harness.now()

    @clause("AUD-1")
    async def test_numbers_have_no_gaps_whoever_adds_at_the_same_time(self, harness: AuditHarness) -> None:
        log, other = await harness.open(), await harness.reopen()

        async with anyio.create_task_group() as group:
            for n in range(40):
                group.start_soon((log, other)[n % 2].note, (ACME, GLOBEX)[n % 4 // 2], note(f"thing.{n}"))

        for auth in (READER, ELSEWHERE):
            links = await every_link(log, auth)
            assert [one.seq for one in links] == list(range(1, 21))
            assert len(set(actions(links))) == 20

    @clause("AUD-1")
    async def test_the_platform_notes_in_the_audit_of_another_and_a_tenant_may_not(self, harness: AuditHarness) -> None:
        log = await harness.open()

        await log.note(PLATFORM, note(), tenant=ACME.tenant)
        with pytest.raises(PermissionDenied):
            await log.note(GLOBEX, note(), tenant=ACME.tenant)

        [one] = await every_link(log)
        assert entry_of(one).actor_tenant == PLATFORM.tenant

    @clause("AUD-2")
    async def test_each_hash_follows_from_the_one_before_the_number_and_the_entry(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await log.note(ACME, note("thing.ü", subject="5:a,", detail="\t\\ \x7f € 🦭"))
        await log.note(ACME, note("thing.two"))
        await harness.advance(timedelta(microseconds=1))
        await log.note(ACME, note("", subject=""))

        previous = FIRST_HASH
        for seq, one in enumerate(await every_link(log), start=1):
            assert one.hash == link(previous, seq, entry_of(one))
            previous = one.hash
        assert await log.head(READER, ACME.tenant) == Head(tenant=ACME.tenant, seq=3, hash=previous)

    @clause("AUD-3")
    async def test_a_chain_tells_nothing_of_another_tenants(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "ours.one")
        await noted(log, "theirs.one", "theirs.two", auth=GLOBEX)
        await noted(log, "ours.two")

        assert actions(await every_link(log)) == ["ours.one", "ours.two"]
        assert await query(log, EVERYTHING) == ["ours.two", "ours.one"]
        assert [one.seq for one in await every_link(log)] == [1, 2]

    @clause("AUD-4")
    async def test_reading_needs_its_scope_and_another_tenants_the_platforms(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "ours.one")

        for auth in (ACME, ELSEWHERE, SIGNER):
            with pytest.raises(PermissionDenied):
                await log.query(auth, ACME.tenant, EVERYTHING, limit=1)
            with pytest.raises(PermissionDenied):
                await log.chain(auth, ACME.tenant, after=0, limit=1)
            with pytest.raises(PermissionDenied):
                await log.head(auth, ACME.tenant)
            with pytest.raises(PermissionDenied):
                await log.erase(auth, ACME.tenant, first=1, last=1)

        assert actions(await every_link(log)) == ["ours.one"]

    @clause("AUD-4")
    async def test_a_look_into_anothers_audit_is_in_that_audit(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "ours.one")

        page = await log.query(PLATFORM, ACME.tenant, EVERYTHING, limit=9)
        assert actions(list(page.items)) == ["ours.one"]
        assert actions(await every_link(log)) == ["ours.one", "audit.read"]
        await log.chain(PLATFORM, ACME.tenant, after=0, limit=9)

        links = await every_link(log)
        assert actions(links) == ["ours.one", "audit.read", "audit.read"]
        assert entry_of(links[-1]).actor_tenant == PLATFORM.tenant

    @clause("AUD-4")
    async def test_a_look_of_who_acts_for_the_tenant_is_anothers_look(self, harness: AuditHarness) -> None:
        log, service = await harness.open(), ELSEWHERE.acting_for(ACME.tenant)
        await noted(log, "ours.one")

        await log.query(service, ACME.tenant, EVERYTHING, limit=9)
        await log.chain(service, ACME.tenant, after=0, limit=9)

        links = await every_link(log)
        assert actions(links) == ["ours.one", "audit.read", "audit.read"]
        for entry in map(entry_of, links[1:]):
            assert (entry.actor_tenant, entry.principal) == (GLOBEX.tenant, service.principal)

    @clause("AUD-5")
    async def test_a_query_gives_what_matches_all_of_it_newest_first(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await log.note(ACME, note("key.issue", subject="key_1"))
        await harness.advance(timedelta(hours=1))
        middle = await harness.now()
        await log.note(replace(ACME, principal=PrincipalId("usr_ben")), note("key.revoke", subject="key_1"))
        await harness.advance(timedelta(hours=1))
        await log.note(ACME, Note(action="route.deny", subject="key_1", outcome="denied"))

        assert await query(log, EVERYTHING) == ["route.deny", "key.revoke", "key.issue"]
        assert await query(log, Wanted(action="key.issue")) == ["key.issue"]
        assert await query(log, Wanted(action="key.*")) == ["key.revoke", "key.issue"]
        assert await query(log, Wanted(action="key.*", principal=ACME.principal)) == ["key.issue"]
        assert await query(log, Wanted(subject="key_2")) == []
        assert await query(log, Wanted(outcome="denied")) == ["route.deny"]
        assert await query(log, Wanted(since=middle)) == ["route.deny", "key.revoke"]
        assert await query(log, Wanted(until=middle)) == ["key.issue"]
        for odd in ("%", "_", "key._*", "\x00", "\ud800"):
            assert await query(log, Wanted(action=odd)) == []

    @clause("AUD-5")
    async def test_what_is_added_meanwhile_is_not_on_later_pages(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "thing.1", "thing.2", "thing.3")

        first = await log.query(READER, ACME.tenant, EVERYTHING, limit=2)
        await noted(log, "thing.4")
        second = await log.query(READER, ACME.tenant, EVERYTHING, limit=2, cursor=first.next_cursor)

        assert actions([*first.items, *second.items]) == ["thing.3", "thing.2", "thing.1"]
        assert second.next_cursor is None
        with pytest.raises(InvalidArgument):
            await log.query(READER, ACME.tenant, EVERYTHING, limit=2, cursor="x")
        with pytest.raises(InvalidArgument):
            await log.query(READER, ACME.tenant, EVERYTHING, limit=0)

    @clause("AUD-6")
    async def test_the_chain_comes_in_stretches_oldest_first(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, *(f"thing.{n}" for n in range(5)))

        assert actions(await every_link(log, limit=2)) == [f"thing.{n}" for n in range(5)]
        assert await log.chain(READER, ACME.tenant, after=5, limit=2) == ()
        assert await log.chain(READER, ACME.tenant, after=10**30, limit=2) == ()

    @clause("AUD-7")
    async def test_what_is_erased_leaves_its_place_and_an_entry_that_tells(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "thing.1", "thing.2")
        await noted(log, "thing.3", auth=replace(ACME, principal=PrincipalId("usr_ben")))
        await noted(log, "thing.4", "thing.5", "thing.6")
        before = await every_link(log)

        assert await log.erase(PLATFORM, ACME.tenant, first=2, last=5, principal=ACME.principal) == 3

        links = await every_link(log)
        assert actions(links) == ["thing.1", "gone", "thing.3", "gone", "gone", "thing.6", "audit.erase"]
        assert [one.hash for one in links[:6]] == [one.hash for one in before]
        told = entry_of(links[-1])
        assert (told.detail, told.actor_tenant, told.principal) == ("2,4-5", PLATFORM.tenant, PLATFORM.principal)
        check = Check(ACME.tenant, {5: before[4].hash})
        check.take(links)
        verdict = check.verdict(await log.head(READER, ACME.tenant))
        assert (verdict.bad, verdict.erased) == (None, 3)

    @clause("AUD-7")
    async def test_what_tells_of_an_erasure_stays(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "thing.1")

        assert await log.erase(PLATFORM, ACME.tenant, first=1, last=9) == 1
        assert await log.erase(PLATFORM, ACME.tenant, first=1, last=9) == 0

        assert actions(await every_link(log)) == ["gone", "audit.erase"]

    @clause("AUD-8")
    async def test_the_signer_gets_every_head_and_nobody_else_does(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "ours.one", "ours.two")
        await noted(log, "theirs.one", auth=GLOBEX)

        heads = await log.heads(SIGNER, limit=9)

        ours, theirs = (await every_link(log))[-1], (await every_link(log, ELSEWHERE))[-1]
        assert heads == (
            Head(tenant=ACME.tenant, seq=2, hash=ours.hash),
            Head(tenant=GLOBEX.tenant, seq=1, hash=theirs.hash),
        )
        assert await log.heads(SIGNER, limit=1) == heads[:1]
        assert await log.heads(SIGNER, after=ACME.tenant, limit=1) == heads[1:]
        for auth in (READER, PLATFORM):
            with pytest.raises(PermissionDenied):
                await log.heads(auth, limit=1)

    @clause("AUD-9")
    async def test_what_can_not_be_kept_is_refused(self, harness: AuditHarness) -> None:
        log = await harness.open()
        bad: list[Any] = [
            note("x" * (MAX_TEXT_CHARS + 1)),
            note(subject="x" * (MAX_TEXT_CHARS + 1)),
            note(detail="x" * (MAX_DETAIL_CHARS + 1)),
            note(detail="\x00"),
            note(subject="\ud800"),
        ]

        for one in bad:
            with pytest.raises(InvalidArgument):
                await log.note(ACME, one)

        await log.note(ACME, note("x" * MAX_TEXT_CHARS, detail="x" * MAX_DETAIL_CHARS))
        assert len(await every_link(log)) == 1

    @clause("AUD-10")
    async def test_what_was_noted_is_there_for_a_log_opened_anew(self, harness: AuditHarness) -> None:
        log = await harness.open()
        await noted(log, "thing.1")

        again = await harness.reopen()

        assert await every_link(again) == await every_link(log) != []

    @clause("AUD-11")
    async def test_each_storage_that_is_read_has_chains_of_its_own_and_no_other_is_read(
        self, harness: AuditHarness
    ) -> None:
        log = await harness.open()
        await noted(log, "thing.1")
        own = await every_link(log)

        for home in log.homes:
            there = log.at(home)
            await noted(there, "elsewhere.1", "elsewhere.2")
            links = await every_link(there)
            assert [(one.seq, one.home) for one in links] == [(1, home), (2, home)]
            assert await there.head(READER, ACME.tenant) == Head(
                tenant=ACME.tenant, seq=2, hash=links[-1].hash, home=home
            )
            assert await there.heads(SIGNER, limit=1) == (await there.head(READER, ACME.tenant),)
        for name in ("", "none-such", "x" * 200):
            with pytest.raises(NotFound):
                log.at(name)

        assert await every_link(log) == own
        assert [one.home for one in own] == [""]
