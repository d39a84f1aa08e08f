"""The audit of a tenant that moves: what it says stays whole, in the home too, and a change of it there is told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.postgres import audit
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.move_tables import SHARED
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, load_key
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.audit_check import checked_chains, checked_export, exported
from deploy.audit_heads import HeadsFile, read_heads
from deploy.audit_signer import Signer
from ports.adapter import Given
from ports.audit import READ, AuditLog, Note, Wanted
from ports.audit_rules import Verdict
from ports.errors import Unavailable
from tests.support.homes import CLOCK, OTHER, Homes, open_homes, prompt
from tests.support.postgres import execute, fetch

pytestmark = pytest.mark.anyio

READER = replace(ACME, scopes=frozenset({READ}))
EVERYTHING = Wanted()


@pytest.fixture
async def homes() -> AsyncIterator[Homes]:
    with prompt():
        async with open_homes() as made:
            for auth in (ACME, GLOBEX):
                await made.entitle(auth)
            yield made


@pytest.fixture
async def log(homes: Homes) -> AsyncIterator[AuditLog]:
    async with audit.SPEC.open(homes.control, Given(clock=CLOCK)) as log:
        yield log


async def there_and_back(homes: Homes, log: AuditLog) -> None:
    """Something is done in each place, and beside them in the directory."""
    for to in (OTHER, SHARED):
        await homes.api.create(ACME)
        await homes.move(ACME.tenant, to)
        await log.note(ACME, Note(action="key.issue", subject="key_1"))
        await homes.clear(ACME.tenant)
    await homes.api.create(ACME)


def told(verdicts: list[Verdict]) -> list[tuple[str, str, int, int | None]]:
    return [(one.tenant, one.home, one.checked, one.bad) for one in verdicts]


async def actions(log: AuditLog, limit: int = 200) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await log.query(READER, ACME.tenant, EVERYTHING, limit=limit, cursor=cursor)
        found += (f"{one.home}:{one.entry.action}" for one in page.items if one.entry is not None)
        if (cursor := page.next_cursor) is None:
            return found[::-1]


async def test_what_is_done_is_noted_where_it_is_done_and_read_as_one(homes: Homes, log: AuditLog) -> None:
    await there_and_back(homes, log)

    expected = [
        ":tenant.create", ":agent.publish", ":run.create", ":tenant.move_begin", ":tenant.move", ":key.issue",
        ":tenant.move_clear", f"{OTHER}:run.create", ":tenant.move_begin", ":tenant.move", ":key.issue",
        ":tenant.move_clear", ":run.create",
    ]  # fmt: skip
    assert await actions(log) == expected
    for limit in (1, 2, 5):
        assert await actions(log, limit) == expected
    [one] = (await log.query(READER, ACME.tenant, Wanted(action="run.*"), limit=1)).items
    assert (one.home, one.seq) == ("", 12)


async def test_every_chain_holds_over_moves_and_none_is_made_where_nobody_lived(homes: Homes, log: AuditLog) -> None:
    await log.query(PLATFORM, GLOBEX.tenant, EVERYTHING, limit=9)
    await there_and_back(homes, log)

    verdicts = await checked_chains(log, PLATFORM, None, {})

    assert told(verdicts) == [(ACME.tenant, "", 12, None), (ACME.tenant, OTHER, 1, None), (GLOBEX.tenant, "", 3, None)]
    # Being looked at is in each of them by now.
    assert told(await checked_chains(log, PLATFORM, ACME.tenant, {})) == [
        (ACME.tenant, "", 13, None),
        (ACME.tenant, OTHER, 2, None),
    ]


async def test_a_look_goes_on_where_it_was_when_the_tenant_has_moved_meanwhile(homes: Homes, log: AuditLog) -> None:
    first = await log.query(READER, ACME.tenant, EVERYTHING, limit=1)
    await homes.move(ACME.tenant, OTHER)
    await homes.api.create(ACME)

    second = await log.query(READER, ACME.tenant, EVERYTHING, limit=9, cursor=first.next_cursor)

    assert [one.entry.action for one in (*first.items, *second.items) if one.entry] == [
        "agent.publish",
        "tenant.create",
    ]


SECOND = "(SELECT entry FROM agentos.audit_chain WHERE seq = 2)"
TAMPERS = {
    "edit": (f"UPDATE agentos.audit_log SET principal = 'usr_else' WHERE id = {SECOND}", 2),
    "cut the tail": (
        (
            "DELETE FROM agentos.audit_log WHERE id IN (SELECT entry FROM agentos.audit_chain WHERE seq > 1); "
            "DELETE FROM agentos.audit_chain WHERE seq > 1; "
            "UPDATE agentos.audit_heads h SET seq = 1, hash = c.hash FROM agentos.audit_chain c WHERE c.seq = 1"
        ),
        2,
    ),
    "all of it": (
        "DELETE FROM agentos.audit_log; DELETE FROM agentos.audit_chain; DELETE FROM agentos.audit_heads",
        1,
    ),
}


@pytest.mark.parametrize("way", TAMPERS)
async def test_whoever_changes_it_in_the_home_is_told_of(homes: Homes, log: AuditLog, tmp_path: Path, way: str) -> None:
    key = tmp_path / "key.pem"
    generate_key(key)
    file = HeadsFile(tmp_path / "audit", load_key(key))
    await homes.move(ACME.tenant, OTHER)
    for _ in range(3):
        await homes.api.create(ACME)
    await Signer(log, file, SystemClock()).sign()
    signed = read_heads((tmp_path / "audit" / "heads.jsonl").read_bytes(), [load_key(key).public_key()])
    assert signed.newest_of(f"{ACME.tenant}@{OTHER}")[0] == 3
    assert all(one.good for one in await checked_chains(log, PLATFORM, None, signed.heads))
    lines = b"".join([part async for part in exported(log.at(OTHER), READER, ACME.tenant, CLOCK.now())]).splitlines()
    statement, bad_at = TAMPERS[way]

    await execute(homes.other.superuser, statement)

    # The tenant first: the platform's look is noted.
    for auth, tenant in ((READER, ACME.tenant), (PLATFORM, None)):
        found = await checked_chains(log, auth, tenant, signed.heads)
        assert [(one.home, one.bad) for one in found if not one.good] == [(OTHER, bad_at)]
    decided = await Signer(log, file, SystemClock()).sign()
    assert decided is not None
    assert (f"{ACME.tenant}@{OTHER}" in decided.refused) == (way != "edit")
    assert checked_export(lines, signed.heads).good, "what was exported before"


async def test_a_home_that_is_gone_is_not_passed_over(homes: Homes, log: AuditLog, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    generate_key(key)
    file = HeadsFile(tmp_path / "audit", load_key(key))
    await homes.move(ACME.tenant, OTHER)
    await homes.api.create(ACME)
    await Signer(log, file, SystemClock()).sign()
    signed = file.read()
    alone = PostgresConfig(dsn=homes.shared.control, homes=(("lab", homes.other.control),))

    async with audit.SPEC.open(alone, Given(clock=CLOCK)) as without:
        with pytest.raises(Unavailable, match="AGENTOS_HOMES"):
            await without.query(READER, ACME.tenant, EVERYTHING, limit=9)
        found = await checked_chains(without, PLATFORM, ACME.tenant, signed.heads)
        assert [(one.home, "not configured" in one.why) for one in found if not one.good] == [(OTHER, True)]
        assert await without.query(replace(GLOBEX, scopes=frozenset({READ})), GLOBEX.tenant, EVERYTHING, limit=9)


async def test_an_entry_is_there_only_with_what_it_tells(homes: Homes) -> None:
    await homes.move(ACME.tenant, OTHER)
    made = await homes.api.create(ACME)

    [row] = await fetch(homes.other.admin, "SELECT a.subject, a.xmin = r.xmin AS together FROM audit_log a, runs r")

    assert (row["subject"], row["together"]) == (made, True)
