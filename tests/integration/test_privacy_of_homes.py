"""Requests about one's data where a tenant lives, or lived, in a home: both places are looked at, nothing stays."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import asyncpg
import pytest

from adapters.postgres import administration, audit, maintenance, privacy, privacy_erasing
from adapters.postgres.engine import PostgresConfig, open_database
from adapters.postgres.move import abort_move
from adapters.postgres.move_tables import SHARED
from adapters.postgres.statements import statement
from adapters.postgres.tenant_export import export_subject, verified
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from deploy.audit_check import checked_chains
from ports.adapter import Given
from ports.audit import AuditLog
from ports.errors import AgentOSError, Conflict, NotFound, Unavailable
from ports.ids import PrincipalId
from ports.privacy import Erasure, PrivacyPort, erased_name
from tests.support.homes import CLOCK, OTHER, Homes, Killed, killed_at, open_homes, prompt, silent, waits_for_a_lock
from tests.support.postgres import Clone, execute, fetch, shift_time
from tests.support.subject_data import dump, named, plant, plant_at_home, tables_with

pytestmark = pytest.mark.anyio

GIVEN: Final = Given(clock=CLOCK)
WORD, BEN_S = "c4n4ryann", "c4n4ryben"
ANN, BEN = named(WORD), named(BEN_S)
WHO: Final = PrincipalId(ANN.principal)
NAME: Final = erased_name(ACME.tenant, WHO)
MOVED: Final = {"runs", "steps", "run_events", "blobs", "idempotency", "memory_items", "memory_words", "queue_messages"}
"""What moves and says the word."""


@pytest.fixture
async def homes() -> AsyncIterator[Homes]:
    with prompt():
        async with open_homes() as made:
            for auth in (ACME, GLOBEX):
                await made.entitle(auth)
            for auth, word in ((ANN, WORD), (BEN, BEN_S)):
                await plant(made.shared, auth, word)
            yield made


@pytest.fixture
async def port(homes: Homes) -> AsyncIterator[PrivacyPort]:
    async with privacy.SPEC.open(homes.control, GIVEN) as opened:
        yield opened


@pytest.fixture
async def log(homes: Homes) -> AsyncIterator[AuditLog]:
    async with audit.SPEC.open(homes.control, GIVEN) as opened:
        yield opened


async def erased(port: PrivacyPort, calls: int = 200) -> Erasure:
    for _ in range(calls):
        erasure = await port.erase(PLATFORM, ACME.tenant, WHO)
        if erasure.done:
            return erasure
    raise AssertionError(f"it does not come to an end: {erasure}")


async def says(homes: Homes, word: str = WORD) -> dict[str, set[str]]:
    """In which tables of which database the word is."""
    return {
        name: tables_with(await dump(clone), word) for name, clone in ((SHARED, homes.shared), (OTHER, homes.other))
    }


async def chains_hold(log: AuditLog) -> bool:
    found = await checked_chains(log, PLATFORM, ACME.tenant, {})
    return {one.home for one in found} == {"", OTHER} and all(one.good for one in found)


async def kept_up(clone: Clone, days: int = 3_000) -> None:
    async with maintenance.SPEC.open(PostgresConfig(dsn=clone.app), GIVEN) as upkeep:
        while (await upkeep.upkeep(NODE, retention=timedelta(days=days))).more:
            pass


async def settle(homes: Homes, to: str = OTHER) -> None:
    await homes.move(ACME.tenant, to)
    await homes.clear(ACME.tenant)


async def ever_lived(homes: Homes) -> None:
    """There, and at home again: with something new in each place."""
    await settle(homes)
    await plant_at_home(homes.other, ANN, WORD)
    await settle(homes, SHARED)


LIVES: Final[dict[str, Callable[[Homes], Coroutine[Any, Any, None]]]] = {
    "lives there": settle,
    "lived there": ever_lived,
}


@pytest.mark.parametrize("where", LIVES)
async def test_after_an_erasing_no_table_of_either_place_says_a_word(
    homes: Homes, port: PrivacyPort, log: AuditLog, where: str
) -> None:
    await LIVES[where](homes)
    if where == "lives there":
        await homes.api.create(ACME)
    before, others = await says(homes), await says(homes, BEN_S)

    erasure = await erased(port)

    assert before[OTHER if where == "lives there" else SHARED] >= MOVED
    assert "audit_log" in before[SHARED]
    assert await says(homes) == {SHARED: set(), OTHER: set()}
    assert await says(homes, BEN_S) == others
    assert await chains_hold(log)
    counts = erasure.counts
    assert (counts.runs, counts.requests, counts.keys) == (1 if where == "lives there" else 2, 1, 1)
    assert counts.audit > 0
    assert await port.erasures(PLATFORM, ACME.tenant) == (erasure,)


async def test_each_place_keeps_a_tombstone_and_its_chain_tells(homes: Homes, port: PrivacyPort) -> None:
    await settle(homes)
    await homes.api.create(ACME)

    await erased(port)

    told = "SELECT action, subject FROM audit_log WHERE tenant_id = 'tnt_acme' AND action LIKE 'subject.%' ORDER BY id"
    for clone in (homes.shared, homes.other):
        rows = await fetch(clone.superuser, told)
        assert [tuple(row) for row in rows] == [("subject.erase", NAME), ("subject.erased", NAME)]
        [row] = await fetch(clone.superuser, "SELECT name, status FROM subject_tombstones")
        assert tuple(row) == (NAME, "erased")
    barred = "SELECT id, status FROM principals WHERE tenant_id = 'tnt_acme' AND id LIKE 'erased:%'"
    assert [tuple(row) for row in await fetch(homes.shared.superuser, barred)] == [(NAME, "disabled")]


async def test_a_run_in_the_home_that_has_not_ended_refuses_it_before_anything_goes(
    homes: Homes, port: PrivacyPort
) -> None:
    await settle(homes)
    run = await homes.api.create(ANN)
    before = await says(homes)

    with pytest.raises(Conflict) as refused:
        await port.erase(PLATFORM, ACME.tenant, WHO)

    assert refused.value.code == "runs_open"
    assert await says(homes) == before
    assert await port.erasures(PLATFORM, ACME.tenant) == ()
    assert (await homes.api.runs.load(ANN, run)).status == "queued"


@pytest.mark.parametrize("calls", [1, 3, 9, 10, 16])
async def test_interrupted_anywhere_it_is_gone_on_with_by_another_process(
    homes: Homes, port: PrivacyPort, log: AuditLog, calls: int
) -> None:
    await settle(homes)
    await homes.api.create(ACME)
    so_far = [await port.erase(PLATFORM, ACME.tenant, WHO) for _ in range(calls)]
    listed = await port.erasures(PLATFORM, ACME.tenant)

    async with privacy.SPEC.open(homes.control, GIVEN) as another:
        if not so_far[-1].done:
            assert listed == (so_far[-1],)
        last = so_far[-1] if so_far[-1].done else await erased(another)

    assert last.counts.runs == 1
    assert (last.counts.requests, last.counts.memory, last.counts.keys) == (1, 1, 1)
    assert await says(homes) == {SHARED: set(), OTHER: set()}
    assert await chains_hold(log)


async def test_asked_again_it_looks_again_in_both(homes: Homes, port: PrivacyPort) -> None:
    await settle(homes)
    await erased(port)
    await plant_at_home(homes.other, ANN, WORD)
    await plant(homes.shared, ANN, WORD)

    again = await erased(port)

    # A run was planted in the place that runs do not live in any more, too.
    assert again.counts.runs == 2
    assert await says(homes) == {SHARED: set(), OTHER: set()}


@pytest.mark.parametrize("subject", [WHO, None], ids=["the subject", "all of the tenant"])
@pytest.mark.parametrize("when", ["before the move", "afterwards"])
async def test_what_is_held_stays_in_both_whatever_its_age(
    homes: Homes, port: PrivacyPort, subject: PrincipalId | None, when: str
) -> None:
    if when == "before the move":
        held = await port.hold(PLATFORM, ACME.tenant, subject, reason="case 17/26")
        await port.retain(PLATFORM, ACME.tenant, {"runs": 7, "memory": 1})
        await settle(homes)
    else:
        await settle(homes)
        held = await port.hold(PLATFORM, ACME.tenant, subject, reason="case 17/26")
        await port.retain(PLATFORM, ACME.tenant, {"runs": 7, "memory": 1})
    before = await says(homes)

    with pytest.raises(Conflict) as refused:
        await port.erase(PLATFORM, ACME.tenant, WHO)
    for clone in (homes.shared, homes.other):
        await shift_time(clone, timedelta(days=60))
        await kept_up(clone, 30)
    during = await says(homes)
    for clone in (homes.shared, homes.other):
        await shift_time(clone, timedelta(0))
    await port.release(PLATFORM, ACME.tenant, held.id)
    await erased(port)

    assert refused.value.code == "legal_hold"
    # Journaled replies are for retries.
    assert during == {SHARED: before[SHARED] - {"model_replies"}, OTHER: before[OTHER]}
    assert before[OTHER] >= MOVED
    assert await says(homes) == {SHARED: set(), OTHER: set()}


async def test_upkeep_of_the_home_heeds_the_tenants_rules_and_no_longer_than_they_stand(
    homes: Homes, port: PrivacyPort
) -> None:
    await port.retain(PLATFORM, ACME.tenant, {"memory": 1, "runs": 7})
    await settle(homes)
    await port.retain(PLATFORM, ACME.tenant, {"runs": None})
    await shift_time(homes.other, timedelta(days=20))

    await kept_up(homes.other)

    assert (await says(homes))[OTHER] == MOVED - {"memory_items", "memory_words"}
    assert await port.retention(PLATFORM, ACME.tenant) == {"memory": 1}


async def test_a_tenant_of_which_something_is_held_is_not_removed_from_its_home(
    homes: Homes, port: PrivacyPort
) -> None:
    await settle(homes)
    await homes.api.tenants.set_status(PLATFORM, ACME.tenant, "disabled")
    await port.hold(PLATFORM, ACME.tenant, None, reason="case 17/26")
    before = await says(homes)

    async with administration.SPEC.open(homes.control, GIVEN) as removing:
        with pytest.raises(Conflict) as refused:
            await removing.erase(PLATFORM, ACME.tenant, export_sha256="sha256:x", limit=10)

    assert refused.value.code == "legal_hold"
    assert await says(homes) == before


@pytest.mark.parametrize("calls", [2, 6, 12])
@pytest.mark.parametrize("first", [SHARED, OTHER], ids=["from the shared database", "from the home"])
async def test_an_erasing_is_moved_in_the_midst_and_comes_to_its_end(
    homes: Homes, port: PrivacyPort, log: AuditLog, first: str, calls: int
) -> None:
    """What was not erased yet goes along, also to where the erasing was done already."""
    await ever_lived(homes)
    if first == OTHER:
        await settle(homes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(privacy_erasing, "RUNS", 1)
        for _ in range(calls):
            await port.erase(PLATFORM, ACME.tenant, WHO)

        await homes.move(ACME.tenant, SHARED if first == OTHER else OTHER)
        with pytest.raises(Conflict, match="remains"):
            await port.erase(PLATFORM, ACME.tenant, WHO)
        await homes.clear(ACME.tenant)
        erasure = await erased(port)

    assert erasure.counts.runs == 2
    assert await says(homes) == {SHARED: set(), OTHER: set()}
    assert await chains_hold(log)


async def test_while_it_moves_nothing_is_erased(homes: Homes, port: PrivacyPort) -> None:
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("copied"))

    with pytest.raises(Conflict, match="is being moved"):
        await port.erase(PLATFORM, ACME.tenant, WHO)
    held = await port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26")

    assert await kept_in(homes.other) == [(WHO, "case 17/26")]
    await homes.move(ACME.tenant, OTHER)
    await homes.clear(ACME.tenant)
    assert await port.holds(PLATFORM, ACME.tenant) == (held,)
    assert await kept_in(homes.other) == [(WHO, "case 17/26")]


async def kept_in(clone: Clone) -> list[tuple[str, str]]:
    rows = await fetch(clone.superuser, "SELECT subject, reason FROM legal_holds WHERE released_at IS NULL")
    return [tuple(row) for row in rows]


async def rules_in(clone: Clone) -> list[tuple[str, int]]:
    return [tuple(row) for row in await fetch(clone.superuser, "SELECT class, days FROM retention_rules ORDER BY 1")]


async def test_rules_are_in_force_where_it_arrives_and_not_before(homes: Homes, port: PrivacyPort) -> None:
    """Else upkeep there would remove what the move then misses."""
    await port.retain(PLATFORM, ACME.tenant, {"runs": 7})
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("copied"))
    await port.retain(PLATFORM, ACME.tenant, {"memory": 3})
    on_the_way = await rules_in(homes.other)

    await homes.move(ACME.tenant, OTHER)

    assert on_the_way == []
    assert await rules_in(homes.other) == [("memory", 3), ("runs", 7)]


async def test_an_aborted_move_leaves_nothing_of_it_behind(homes: Homes, port: PrivacyPort) -> None:
    await port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26")
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("copied"))
    assert await kept_in(homes.other) == [(WHO, "case 17/26")]

    await abort_move(PLATFORM, ACME.tenant, homes.places, tell=silent)

    assert await kept_in(homes.other) == []
    assert (await says(homes))[OTHER] == set()
    assert await kept_in(homes.shared) == [(WHO, "case 17/26")]


async def test_a_former_home_has_its_rules_again_when_the_move_back_is_aborted(homes: Homes, port: PrivacyPort) -> None:
    """What it keeps of the time that the tenant lived there is kept as long as the tenant says."""
    await ever_lived(homes)
    await port.retain(PLATFORM, ACME.tenant, {"runs": 7})
    before = await rules_in(homes.other)
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("copied"))
    await port.retain(PLATFORM, ACME.tenant, {"memory": 3})
    held = await port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26")

    await abort_move(PLATFORM, ACME.tenant, homes.places, tell=silent)

    assert before == [("runs", 7)]
    assert await rules_in(homes.other) == await rules_in(homes.shared) == [("memory", 3), ("runs", 7)]
    assert await port.holds(PLATFORM, ACME.tenant) == (held,)
    assert await kept_in(homes.other) == [(WHO, "case 17/26")]


async def test_of_two_that_copy_the_later_has_what_the_earlier_had(homes: Homes, port: PrivacyPort) -> None:
    await settle(homes)

    await asyncio.gather(
        *(port.hold(PLATFORM, ACME.tenant, PrincipalId(f"usr_{n}"), reason="case 17/26") for n in range(8))
    )

    assert sorted(await kept_in(homes.other)) == sorted(await kept_in(homes.shared))
    assert len(await kept_in(homes.other)) == 8


async def test_while_one_copies_nobody_places_another(homes: Homes, port: PrivacyPort) -> None:
    """Else the copy, which has not seen it, might be the last to arrive."""
    await settle(homes)
    upkeep = await asyncpg.connect(homes.other.superuser)
    try:
        await upkeep.execute("SELECT pg_advisory_lock(174487310)")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26"))
            await waits_for_a_lock(homes.other)
            second = group.create_task(port.hold(PLATFORM, ACME.tenant, None, reason="case 18/26"))
            await waits_for_a_lock(homes.shared)
            before = await kept_in(homes.shared)
            await upkeep.execute("SELECT pg_advisory_unlock(174487310)")
    finally:
        await upkeep.close()

    assert before == [(WHO, "case 17/26")]
    assert {first.result().subject, second.result().subject} == {WHO, None}
    assert len(await kept_in(homes.other)) == 2


async def test_a_hold_that_did_not_reach_the_home_is_there_before_anything_goes(
    homes: Homes, port: PrivacyPort
) -> None:
    """The process that placed it ended between the two commits."""
    await settle(homes)
    await execute(
        homes.shared.superuser,
        "INSERT INTO agentos.legal_holds (tenant_id, subject, reason, placed_by) "
        f"VALUES ('tnt_acme', '{BEN.principal}', 'case 18/26', 'usr_officer')",
    )

    await erased(port)

    assert await kept_in(homes.other) == [(BEN.principal, "case 18/26")]


async def test_a_release_that_did_not_reach_the_home_does_when_it_is_said_again(
    homes: Homes, port: PrivacyPort
) -> None:
    await settle(homes)
    hold = await port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26")
    copying = "FUNCTION agentos.ao_copy_kept(json, json)"
    await execute(homes.other.superuser, f"REVOKE EXECUTE ON {copying} FROM ao_control")
    with pytest.raises(AgentOSError):
        await port.release(PLATFORM, ACME.tenant, hold.id)
    between = [await kept_in(clone) for clone in (homes.shared, homes.other)]
    await execute(homes.other.superuser, f"GRANT EXECUTE ON {copying} TO ao_control")

    with pytest.raises(NotFound):
        await port.release(PLATFORM, ACME.tenant, hold.id)

    assert between == [[], [(WHO, "case 17/26")]]
    assert await kept_in(homes.other) == []


async def test_a_home_that_is_not_configured_refuses_it_all(homes: Homes, port: PrivacyPort) -> None:
    """Whoever is told that it is done, or in force, must be able to rely on it."""
    await settle(homes)
    before = await says(homes)
    unknown: Any = ((f"{OTHER}x", homes.other.control),)
    async with privacy.SPEC.open(PostgresConfig(dsn=homes.shared.control, homes=unknown), GIVEN) as elsewhere:
        for attempt in (
            elsewhere.erase(PLATFORM, ACME.tenant, WHO),
            elsewhere.hold(PLATFORM, ACME.tenant, None, reason="case 17/26"),
            elsewhere.retain(PLATFORM, ACME.tenant, {"runs": 7}),
        ):
            with pytest.raises(Unavailable, match="AGENTOS_HOMES"):
                await attempt
    async with privacy.SPEC.open(PostgresConfig(dsn=homes.shared.control), GIVEN) as alone:
        for attempt in (
            alone.erase(PLATFORM, ACME.tenant, WHO),
            alone.hold(PLATFORM, ACME.tenant, None, reason="case 17/26"),
            alone.retain(PLATFORM, ACME.tenant, {"runs": 7}),
        ):
            with pytest.raises(Conflict, match="home of its own"):
                await attempt

    assert await says(homes) == before
    assert await port.holds(PLATFORM, ACME.tenant) == ()
    assert await port.retention(PLATFORM, ACME.tenant) == {}


async def test_nobody_copies_over_what_the_directory_says(homes: Homes, port: PrivacyPort) -> None:
    await port.hold(PLATFORM, ACME.tenant, WHO, reason="case 17/26")
    async with open_database(PostgresConfig(dsn=homes.shared.control)) as shared:
        with pytest.raises(AgentOSError, match="55000"):
            async with shared.transaction(ACME.tenant) as transaction:
                await transaction.rows(statement("SELECT ao_copy_kept('[]', '[]')"), {})

    assert await kept_in(homes.shared) == [(WHO, "case 17/26")]


def _export_of(path: Path) -> dict[str, list[str]]:
    manifest = verified(path)
    with ZipFile(path) as packed:
        return {name: packed.read(f"tables/{name}.ndjson").decode().splitlines() for name in manifest.tables}


@pytest.mark.parametrize("when", ["settled", "remains", "under way", "back again"])
async def test_an_export_has_all_of_both_places_once(homes: Homes, tmp_path: Path, when: str) -> None:
    if when == "under way":
        with pytest.raises(Killed):
            await homes.move(ACME.tenant, OTHER, tell=killed_at("compared"))
    elif when == "back again":
        await ever_lived(homes)
    else:
        await homes.move(ACME.tenant, OTHER)
        if when == "settled":
            await homes.clear(ACME.tenant)
            await homes.api.create(ANN)

    made = await export_subject(
        homes.shared.control, ACME.tenant, WHO, tmp_path / "ann.zip", {OTHER: homes.other.control}
    )

    rows = _export_of(Path(made.path))
    of_run = {name: len(lines) for name, lines in rows.items() if name.rpartition("/")[2] == "runs"}
    assert (
        of_run
        == {
            "settled": {"runs": 0, f"{OTHER}/runs": 2},
            "remains": {f"{OTHER}/runs": 1},
            "under way": {"runs": 1},
            "back again": {"runs": 2},
        }[when]
    )
    assert sum(len(lines) for name, lines in rows.items() if name.rpartition("/")[2] == "memory_items") == 1
    assert len(rows["audit_log"]) >= 2
    if when in {"settled", "back again"}:
        assert rows[f"{OTHER}/audit_log"], "what was done in the home is told there"
    assert not [name for name, lines in rows.items() if any(BEN_S in line for line in lines)]
