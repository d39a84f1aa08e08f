"""Requests about one's data against a real database: nothing of the subject is left, and nothing else is touched."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres import audit, maintenance, privacy, tenant_export
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.subject_tables import NOT_A_SUBJECTS, OF_A_SUBJECT
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from deploy import credentials
from deploy.audit_check import checked
from deploy.node import Node, write_private
from ports.adapter import Given
from ports.audit import Note
from ports.context import SCOPES, AuthContext
from ports.errors import AgentOSError
from ports.ids import TenantId
from ports.maintenance import MIN_RETENTION
from ports.privacy import erased_name
from tests.support.cli import Said, agentos, home_of
from tests.support.postgres import Clone, clone, drop, execute, fetch, shift_time
from tests.support.subject_data import KEYS, dump, named, plant, tables_with, two_tenants

ROOT: Final = Path(__file__).parents[2]
WORD, OTHER, ELSEWHERE = "c4n4ryann", "c4n4ryben", "c4n4ryglo"
ANN, BEN = named(WORD), named(OTHER)
THERE = named(ELSEWHERE, GLOBEX.tenant)
GIVEN: Final = Given(clock=SystemClock())
EVERYWHERE: Final = {
    "api_keys", "audit_log", "blobs", "idempotency", "memory_items", "memory_words", "model_replies", "principals",
    "queue_messages", "request_contents", "request_records", "run_events", "runs", "steps", "usage_events",
}  # fmt: skip
"""Each table that can say anything of a subject."""


@pytest.fixture
def database() -> Iterator[Clone]:
    made = asyncio.run(clone())
    asyncio.run(_planted(made))
    yield made
    asyncio.run(drop(made))


async def _planted(database: Clone) -> None:
    await two_tenants(database)
    for auth, word in ((ANN, WORD), (BEN, OTHER), (THERE, ELSEWHERE)):
        await plant(database, auth, word)


@pytest.fixture
def environ(database: Clone, tmp_path: Path) -> dict[str, str]:
    made = home_of(database, tmp_path)
    write_private(Node.locate(made).secret(credentials.RECORD_KEYS), KEYS)
    return made


def rows_of(database: Clone) -> dict[str, list[str]]:
    return asyncio.run(dump(database))


def of(rows: dict[str, list[str]], *words: str) -> dict[str, list[str]]:
    """The rows that say one of the words, by table."""
    return {name: found for name, texts in rows.items() if (found := [t for t in texts if any(w in t for w in words)])}


def chain_holds(database: Clone, tenant: TenantId = ACME.tenant) -> bool:
    async def check() -> bool:
        async with audit.SPEC.open(PostgresConfig(dsn=database.control), GIVEN) as log:
            return (
                await checked(log, AuthContext(tenant=tenant, principal=PLATFORM.principal, scopes=SCOPES), tenant, {})
            ).good

    return asyncio.run(check())


def run(environ: dict[str, str], *arguments: str) -> Said:
    return agentos("privacy", *arguments, "--tenant", ACME.tenant, environ=environ)


def erase(environ: dict[str, str], *more: str) -> Said:
    return run(environ, "erase", ANN.principal, "--confirm", ANN.principal, *more)


def upkept(database: Clone) -> None:
    async def keep() -> None:
        async with maintenance.SPEC.open(PostgresConfig(dsn=database.app), GIVEN) as port:
            while (await port.upkeep(NODE, retention=timedelta(days=3_000))).more:
                pass

    asyncio.run(keep())


def test_after_an_erasing_no_table_says_a_word_of_the_subject(database: Clone, environ: dict[str, str]) -> None:
    before = rows_of(database)
    said = erase(environ)
    after = rows_of(database)

    # Sealed texts can't be found by what they say: that their rows are gone is seen below.
    assert tables_with(before, WORD) == EVERYWHERE
    assert said.code == 0, said.err
    assert tables_with(after, WORD) == set()
    assert len(before["request_contents"]) - len(after["request_contents"]) == 1
    assert len(before["blobs"]) - len(after["blobs"]) == 1
    for word in (OTHER, ELSEWHERE):
        assert of(after, word) == of(before, word)
    assert chain_holds(database)
    assert chain_holds(database, GLOBEX.tenant)
    assert "1 runs removed" in said.out
    assert erased_name(ACME.tenant, ANN.principal) in said.err


def test_figures_stay_and_are_nobodys(database: Clone, environ: dict[str, str]) -> None:
    def figures() -> Any:
        rows = asyncio.run(
            fetch(
                database.superuser,
                "SELECT (SELECT count(*) FROM request_records) AS requests, (SELECT sum(fresh_tokens) FROM usage_events) "
                "AS tokens, (SELECT count(*) FROM audit_chain WHERE tenant_id = 'tnt_acme') AS links",
            )
        )
        return tuple(rows[0])

    before = figures()
    erase(environ)
    requests, tokens, links = figures()

    assert (requests, tokens) == before[:2]
    assert links > before[2]


def test_the_audit_command_verifies_what_is_left(environ: dict[str, str]) -> None:
    key = Path(environ["AGENTOS_HOME"]) / "secrets" / "audit_key.pem"
    generate_key(key)
    signed = agentos("audit", "sign", environ=environ)
    erase(environ)

    verified = agentos("audit", "verify", "--json", environ=environ)

    assert (signed.code, verified.code) == (0, 0)
    [acme] = [one for one in json.loads(verified.out)["tenants"] if one["tenant"] == ACME.tenant]
    assert acme["erased"] > 0


def test_it_is_asked_for_twice(database: Clone, environ: dict[str, str]) -> None:
    before = rows_of(database)
    unconfirmed = run(environ, "erase", ANN.principal)
    wrong = run(environ, "erase", ANN.principal, "--confirm", BEN.principal)
    absent = agentos("privacy", "erase", "x", "--tenant", "tnt_none", "--confirm", "x", environ=environ)

    assert (unconfirmed.code, wrong.code, absent.code) == (2, 2, 1)
    assert f"--confirm {ANN.principal}" in unconfirmed.err
    assert rows_of(database) == before


@pytest.mark.parametrize("whom", [(ANN.principal,), ("--everybody",)], ids=["the subject", "all of the tenant"])
def test_under_a_hold_nothing_goes(database: Clone, environ: dict[str, str], whom: tuple[str]) -> None:
    placed = run(environ, "hold", *whom, "--reason", "case 17/26", "--json")
    run(environ, "retention", "runs=7", "requests=7", "texts=1", "usage=30", "memory=1", "audit=30")
    before = of(rows_of(database), WORD)

    refused = erase(environ)
    asyncio.run(shift_time(database, timedelta(days=60)))
    upkept(database)
    during = of(rows_of(database), WORD)
    asyncio.run(shift_time(database, timedelta(0)))
    released = run(environ, "release", json.loads(placed.out)["id"])
    done = erase(environ)

    assert (placed.code, refused.code, released.code, done.code) == (0, 1, 0, 0)
    assert "held" in refused.err
    # Journaled replies are for retries, and kept for 7 days whatever else is said.
    before.pop("model_replies")
    assert during == before
    assert tables_with(rows_of(database), WORD) == set()


@pytest.mark.parametrize(
    "step",
    [
        "ao_forget_runs(7, 100)",
        "ao_forget_requests(7, 100)",
        "ao_thin_request_days(7, 100)",
        "ao_drop_request_days(7)",
        "ao_retain(100)",
    ],
)
def test_a_hold_waits_for_what_upkeep_is_removing(database: Clone, step: str) -> None:
    """Whoever is told that the hold is in force finds all that it holds, or nothing that goes later."""

    async def placed() -> tuple[bool, bool]:
        upkeep = await asyncpg.connect(database.app, server_settings={"search_path": "agentos"})
        async with privacy.SPEC.open(PostgresConfig(dsn=database.control), GIVEN) as port:
            removing = upkeep.transaction()
            await removing.start()
            await upkeep.execute(f"SET LOCAL app.tenant_id = '{NODE.tenant}'")
            await upkeep.execute(f"SELECT {step}")
            hold = asyncio.ensure_future(port.hold(PLATFORM, ACME.tenant, ANN.principal, reason="case 17/26"))
            done, _ = await asyncio.wait({hold}, timeout=0.5)
            await removing.commit()
            await upkeep.close()
            return bool(done), (await hold).subject == ANN.principal

    assert asyncio.run(placed()) == (False, True)


def test_of_a_day_that_is_held_the_rest_goes_in_batches(database: Clone, environ: dict[str, str]) -> None:
    async def services(step: str) -> int:
        connection = await asyncpg.connect(database.app, server_settings={"search_path": "agentos"})
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL app.tenant_id = '{NODE.tenant}'")
                removed: int = await connection.fetchval(f"SELECT {step}")
                return removed
        finally:
            await connection.close()

    def kept() -> list[str]:
        rows = asyncio.run(fetch(database.superuser, "SELECT principal FROM request_records ORDER BY 1"))
        return [row["principal"] for row in rows]

    everybodys = kept()
    placed = run(environ, "hold", ANN.principal, "--reason", "case 17/26", "--json")
    asyncio.run(shift_time(database, timedelta(days=30)))

    thinned = [asyncio.run(services("ao_thin_request_days(7, 1)")) for _ in range(3)]
    asyncio.run(services("ao_drop_request_days(7)"))
    held = kept()
    released = run(environ, "release", json.loads(placed.out)["id"])
    unheld = asyncio.run(services("ao_thin_request_days(7, 1)"))
    asyncio.run(services("ao_drop_request_days(7)"))

    assert everybodys == sorted([ANN.principal, BEN.principal, THERE.principal])
    assert thinned == [1, 1, 0]
    assert held == [ANN.principal]
    assert released.code == 0
    assert unheld == 0, "a day that nobody holds is dropped as a whole"
    assert kept() == []


def test_a_step_of_upkeep_that_fails_keeps_no_other_from_its_turn(database: Clone, environ: dict[str, str]) -> None:
    run(environ, "retention", "memory=1")
    asyncio.run(shift_time(database, timedelta(days=4)))
    asyncio.run(
        execute(database.superuser, "REVOKE EXECUTE ON FUNCTION agentos.ao_forget_runs(integer, integer) FROM ao_app")
    )

    with pytest.raises(AgentOSError, match="SQLSTATE 42501"):
        upkept(database)

    assert "memory_items" not in tables_with(rows_of(database), WORD)


def test_retention_by_class_is_the_tenants(database: Clone, environ: dict[str, str]) -> None:
    said = run(environ, "retention", "runs=7", "memory=1", "--json")
    shown = run(environ, "retention")
    before = rows_of(database)

    asyncio.run(shift_time(database, timedelta(days=4)))
    upkept(database)
    first = rows_of(database)
    asyncio.run(shift_time(database, timedelta(days=10)))
    upkept(database)
    second = rows_of(database)
    undone = run(environ, "retention", "memory=node", "--json")

    assert json.loads(said.out)["days"] == {"runs": 7, "memory": 1}
    assert json.loads(undone.out)["days"] == {"runs": 7}
    assert "30 days" not in shown.out
    assert "7 days" in shown.out
    gone = tables_with(before, WORD) - tables_with(first, WORD)
    assert gone == {"memory_items", "memory_words"}
    gone = tables_with(first, WORD) - tables_with(second, WORD)
    assert gone == {"runs", "steps", "run_events", "blobs", "idempotency", "model_replies"}
    assert tables_with(before, ELSEWHERE) - tables_with(second, ELSEWHERE) == {"model_replies"}


def test_an_export_has_all_of_the_subject_and_nothing_of_others(database: Clone, environ: dict[str, str]) -> None:
    made = run(environ, "export", ANN.principal)
    path = Path(made.out.strip())
    manifest = tenant_export.verified(path)
    with ZipFile(path) as packed:
        texts = {name: packed.read(f"tables/{name}.ndjson").decode() for name in manifest.tables}

    assert made.code == 0, made.err
    assert manifest.subject == ANN.principal
    assert WORD not in path.name
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(manifest.tables) == set(OF_A_SUBJECT)
    assert {name for name, text in texts.items() if WORD in text} >= EVERYWHERE - {
        "memory_words", "model_replies", "blobs", "queue_messages",
    }  # fmt: skip
    assert all(texts.values())
    assert not [name for name, text in texts.items() if OTHER in text or ELSEWHERE in text]
    [kept] = [json.loads(line) for line in texts["request_contents"].splitlines()]
    assert kept["texts"] == {"prompt": WORD}
    assert manifest.tables["api_keys"].omitted == ("secret_sha256",)
    rows = asyncio.run(
        fetch(database.superuser, "SELECT subject, detail FROM audit_log WHERE action = 'subject.export'")
    )
    assert [tuple(row) for row in rows] == [(ANN.principal, _sha256(path))]
    checked_again = agentos("tenant", "verify-export", str(path), environ=environ)
    assert checked_again.code == 0


def test_a_namesake_of_another_tenant_is_somebody_else(database: Clone, environ: dict[str, str]) -> None:
    async def noted() -> None:
        async with audit.SPEC.open(PostgresConfig(dsn=database.control), GIVEN) as log:
            await log.note(
                replace(PLATFORM, principal=ANN.principal),
                Note(action="thing.seen", subject="namesake"),
                tenant=ACME.tenant,
            )

    asyncio.run(noted())
    made = run(environ, "export", ANN.principal)
    with ZipFile(Path(made.out.strip())) as packed:
        exported = packed.read("tables/audit_log.ndjson").decode()

    assert (made.code, erase(environ).code) == (0, 0)
    assert ANN.principal in exported
    assert "namesake" not in exported
    assert len(of(rows_of(database), "namesake")["audit_log"]) == 1


def _sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_every_table_of_tenants_rows_says_whether_it_has_a_subjects(database: Clone) -> None:
    rows = asyncio.run(fetch(database.superuser, tenant_export._TABLES))

    assert {row["name"] for row in rows} == OF_A_SUBJECT.keys() | NOT_A_SUBJECTS.keys()


KILLED: Final = """
import asyncio, sys
from adapters.postgres import privacy, privacy_erasing
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.people import PLATFORM
from ports.adapter import Given

privacy_erasing.WINDOW, privacy_erasing.RUNS = 3, 2

async def main(dsn, tenant, subject):
    async with privacy.SPEC.open(PostgresConfig(dsn=dsn), Given(clock=SystemClock())) as port:
        for call in range(10_000):
            done = await port.erase(PLATFORM, tenant, subject)
            print(call, done.status, flush=True)
            if done.done:
                return

asyncio.run(main(*sys.argv[1:]))
"""


def test_killed_half_way_it_is_gone_on_with(database: Clone, environ: dict[str, str]) -> None:
    asyncio.run(plant(database, ANN, WORD, runs=12))
    command = [sys.executable, "-c", KILLED, database.control, ACME.tenant, ANN.principal]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.kill()
    halfway = tables_with(rows_of(database), WORD)
    listed = json.loads(run(environ, "erasures", "--json").out)["erasures"]

    done = erase(environ, "--json")

    assert all("erasing" in line for line in lines)
    assert halfway
    assert [one["status"] for one in listed] == ["erasing"]
    assert 0 < listed[0]["counts"]["runs"] < 13
    assert json.loads(done.out)["counts"]["runs"] == 13
    assert tables_with(rows_of(database), WORD) == set()
    assert chain_holds(database)
    actions = asyncio.run(
        fetch(database.superuser, "SELECT action FROM audit_log WHERE action LIKE 'subject.%' ORDER BY id")
    )
    assert [row["action"] for row in actions] == ["subject.erase", "subject.erased"]


def test_the_services_can_do_nothing_of_this(database: Clone) -> None:
    """Also with the code of administration in their hands."""
    before = rows_of(database)

    async def attempts() -> None:
        async with privacy.SPEC.open(PostgresConfig(dsn=database.app), GIVEN) as port:
            for attempt in (
                port.erase(PLATFORM, ACME.tenant, ANN.principal),
                port.hold(PLATFORM, ACME.tenant, ANN.principal, reason="x"),
                port.retain(PLATFORM, ACME.tenant, {"runs": 7}),
                port.holds(PLATFORM, ACME.tenant),
            ):
                with pytest.raises(AgentOSError, match="SQLSTATE 42501"):
                    await attempt

    asyncio.run(attempts())
    assert rows_of(database) == before


def test_administration_erases_nothing_without_a_tombstone_or_past_a_hold(database: Clone) -> None:
    """Also with statements of its own."""

    async def refused(statement: str) -> str:
        connection = await asyncpg.connect(database.control, server_settings={"search_path": "agentos"})
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL app.tenant_id = '{ACME.tenant}'")
                await connection.execute(statement)
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        finally:
            await connection.close()
        return ""

    nothing = "00000000-0000-0000-0000-000000000000"
    for statement, state in (
        (f"SELECT ao_erase_runs('{ANN.principal}', '{nothing}', 100)", "55000"),
        (f"SELECT ao_erase_rest('memory_items', '{ANN.principal}', 100)", "55000"),
        (f"SELECT ao_end_erasing('{ANN.principal}')", "55000"),
        ("DELETE FROM legal_holds", "42501"),
        ("DELETE FROM subject_tombstones", "42501"),
        ("SELECT ao_remove_runs('{}', '{}', true)", "42501"),
    ):
        assert asyncio.run(refused(statement)) == state, statement


def test_what_makes_no_sense_is_refused(environ: dict[str, str]) -> None:
    for wrong in ("runs=6", "audit=29", "rain=7", "runs", "runs=-1", "runs=99999", "runs=x"):
        assert run(environ, "retention", wrong).code == 2, wrong
    assert timedelta(days=7) == MIN_RETENTION
    assert run(environ, "hold", "--reason", "x").code == 2
    assert run(environ, "release", "hld_x").code == 1
