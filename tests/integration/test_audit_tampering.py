"""Seven ways to change an audit, by somebody who owns the database but not the node's key: each is told, and where."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres import audit
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, load_key
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.audit_check import checked, checked_export, exported
from deploy.audit_heads import HeadsFile, read_heads
from deploy.audit_signer import Signer
from ports.adapter import Given
from ports.audit import READ, AuditLog, Entry, Note
from ports.audit_rules import Verdict, link
from ports.ids import PrincipalId, TenantId
from tests.support.postgres import Clone, cloned

MANY: Final = 20
READER: Final = replace(ACME, scopes=frozenset({READ}))

# As the schema's own arithmetic has it, so that what was written anew contradicts nothing in the database.
REWRITE: Final = """
DO $$
DECLARE
    c record; h bytea := decode(repeat('00', 32), 'hex'); n bigint := 0;
BEGIN
    FOR c IN SELECT k.entry FROM agentos.audit_chain k WHERE k.tenant_id = 'tnt_acme' ORDER BY k.seq LOOP
        n := n + 1;
        SELECT sha256(h || int8send(n) || agentos.ao_audit_form(a)) INTO h
        FROM agentos.audit_log a WHERE a.tenant_id = 'tnt_acme' AND a.id = c.entry;
        UPDATE agentos.audit_chain k SET hash = h WHERE k.tenant_id = 'tnt_acme' AND k.entry = c.entry;
    END LOOP;
    UPDATE agentos.audit_heads SET seq = n, hash = h WHERE tenant_id = 'tnt_acme';
END
$$;
"""
OF: Final = "(SELECT entry FROM agentos.audit_chain WHERE tenant_id = 'tnt_acme' AND seq = {})"
LATER: Final = "tenant_id = 'tnt_acme' AND seq"
MOVE_UP: Final = (
    f"UPDATE agentos.audit_chain SET seq = seq + 1000 WHERE {LATER} > 7; "
    f"UPDATE agentos.audit_chain SET seq = seq - {{}} WHERE {LATER} > 1000; "
)

TAMPERS: Final[dict[str, tuple[str, int]]] = {
    "edit": (f"UPDATE agentos.audit_log SET principal = 'usr_else' WHERE id = {OF.format(7)}", 7),
    "delete": (
        (
            f"DELETE FROM agentos.audit_log WHERE id = {OF.format(7)}; "
            f"DELETE FROM agentos.audit_chain WHERE {LATER} = 7; {MOVE_UP.format(1001)}"
        ),
        7,
    ),
    "cut the tail": (
        (
            f"DELETE FROM agentos.audit_log WHERE id IN (SELECT entry FROM agentos.audit_chain WHERE {LATER} > 15); "
            f"DELETE FROM agentos.audit_chain WHERE {LATER} > 15; "
            "UPDATE agentos.audit_heads h SET seq = 15, hash = c.hash FROM agentos.audit_chain c "
            "WHERE h.tenant_id = 'tnt_acme' AND c.tenant_id = 'tnt_acme' AND c.seq = 15"
        ),
        16,
    ),
    "reorder": (
        (
            "UPDATE agentos.audit_chain SET seq = 9007 WHERE tenant_id = 'tnt_acme' AND seq = 7; "
            "UPDATE agentos.audit_chain SET seq = 7 WHERE tenant_id = 'tnt_acme' AND seq = 8; "
            "UPDATE agentos.audit_chain SET seq = 8 WHERE tenant_id = 'tnt_acme' AND seq = 9007"
        ),
        7,
    ),
    "insert": (
        (
            f"{MOVE_UP.format(999)} INSERT INTO agentos.audit_log "
            "(tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id) "
            "VALUES ('tnt_acme', 'default', 'tnt_acme', 'usr_ann', 'thing.never', 'x', ''); "
            "INSERT INTO agentos.audit_chain SELECT 'tnt_acme', 8, id, decode(repeat('11', 32), 'hex') "
            "FROM agentos.audit_log WHERE action = 'thing.never'"
        ),
        8,
    ),
    "restamp": (
        f"UPDATE agentos.audit_log SET at = at - interval '1 day' WHERE id = {OF.format(7)}; {REWRITE}",
        10,
    ),
    "rewrite": (
        (
            f"DELETE FROM agentos.audit_log WHERE id = {OF.format(3)}; DELETE FROM agentos.audit_chain WHERE {LATER} = 3; "
            f"UPDATE agentos.audit_chain SET seq = seq + 1000 WHERE {LATER} > 3; "
            f"UPDATE agentos.audit_chain SET seq = seq - 1001 WHERE {LATER} > 1000; "
            f"UPDATE agentos.audit_log SET subject = 'x' WHERE tenant_id = 'tnt_acme'; {REWRITE}"
        ),
        5,
    ),
}


@pytest.mark.anyio
class TestTampering:
    @pytest.fixture
    async def clone(self) -> AsyncIterator[Clone]:
        async with cloned() as clone:
            yield clone

    @pytest.fixture
    async def log(self, clone: Clone, heads: HeadsFile) -> AsyncIterator[AuditLog]:
        """With entries of which every fifth was signed, as every minute's last is."""
        async with audit.SPEC.open(PostgresConfig(dsn=clone.control), Given(clock=SystemClock())) as log:
            for n in range(MANY):
                await log.note(ACME, Note(action=f"thing.{n}", subject=f"thing_{n}"))
                if n % 5 == 4:
                    await Signer(log, heads, SystemClock()).sign()
            await log.note(GLOBEX, Note(action="theirs", subject="x"))
            yield log

    @pytest.fixture
    def heads(self, tmp_path: Path) -> HeadsFile:
        generate_key(tmp_path / "key.pem")
        return HeadsFile(tmp_path / "audit", load_key(tmp_path / "key.pem"))

    @pytest.fixture
    def told(self, log: AuditLog, tmp_path: Path) -> Callable[[], Awaitable[Verdict]]:
        async def told() -> Verdict:
            key = load_key(tmp_path / "key.pem").public_key()
            signed = read_heads((tmp_path / "audit" / "heads.jsonl").read_bytes(), [key])
            assert signed.bad == ""
            return await checked(log, READER, ACME.tenant, signed.heads[ACME.tenant])

        return told

    async def test_an_audit_that_nobody_changed_holds(self, told: Callable[[], Awaitable[Verdict]]) -> None:
        verdict = await told()

        assert (verdict.bad, verdict.checked, verdict.signed, verdict.head) == (None, MANY, MANY, MANY)

    @pytest.mark.parametrize("tamper", TAMPERS)
    async def test_what_was_changed_is_told(
        self, clone: Clone, told: Callable[[], Awaitable[Verdict]], tamper: str
    ) -> None:
        statements, bad = TAMPERS[tamper]

        await _as_the_database(clone, statements)

        verdict = await told()
        # What was written anew contradicts nothing but the signatures: the first that stands behind it names it.
        assert verdict.bad == bad, verdict.why

    async def test_the_signer_does_not_sign_what_contradicts(
        self, clone: Clone, log: AuditLog, heads: HeadsFile
    ) -> None:
        await _as_the_database(clone, TAMPERS["cut the tail"][0])

        decided = await Signer(log, heads, SystemClock()).sign()

        assert decided is not None
        assert ([one.tenant for one in decided.sign], decided.refused) == ([GLOBEX.tenant], ("tnt_acme",))

    async def test_whatever_was_changed_is_told_of_an_export_too(self, log: AuditLog, tmp_path: Path) -> None:
        key = load_key(tmp_path / "key.pem").public_key()
        known = read_heads((tmp_path / "audit" / "heads.jsonl").read_bytes(), [key]).heads
        lines = b"".join([part async for part in exported(log, READER, ACME.tenant, SystemClock().now())]).splitlines()
        assert checked_export(lines, known).good

        assert checked_export(lines[:8] + lines[9:], known).bad == 8
        assert checked_export([lines[0], lines[2], lines[1], *lines[3:]], known).bad == 1
        assert checked_export(lines[:-3], known).bad == MANY - 2
        assert checked_export([*lines[:4], lines[4].replace(b"thing_3", b"thing_x"), *lines[5:]], known).bad == 4

    async def test_an_erasure_is_no_tampering_but_a_silent_one_is(
        self, clone: Clone, log: AuditLog, told: Callable[[], Awaitable[Verdict]]
    ) -> None:
        assert await log.erase(PLATFORM, ACME.tenant, first=3, last=5) == 3
        verdict = await told()
        assert (verdict.bad, verdict.erased, verdict.head) == (None, 3, MANY + 1)

        await _as_the_database(clone, f"DELETE FROM agentos.audit_log WHERE id = {OF.format(9)}")

        assert (await told()).bad == 9


def test_the_hash_is_sha256_over_what_the_specification_says() -> None:
    """Worked out by hand, so that the rules and the schema can't drift together."""
    entry = Entry(
        id="00000000-0000-7000-8000-000000000001",
        at=datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC),
        tenant=TenantId("tnt_a"),
        namespace="n",
        actor_tenant=TenantId("tnt_a"),
        principal=PrincipalId("usr_é"),
        action="a.b",
        subject="s",
        correlation_id="",
        outcome="denied",
    )
    form = "5:tnt_a,36:00000000-0000-7000-8000-000000000001,7:1000005,1:n,5:tnt_a,6:usr_é,3:a.b,1:s,0:,6:denied,0:,"

    expected = hashlib.sha256(bytes(32) + (1).to_bytes(8, "big") + form.encode()).hexdigest()

    assert link("00" * 32, 1, entry) == expected


async def _as_the_database(clone: Clone, statements: str) -> None:
    """As the superuser, past every trigger."""
    connection = await asyncpg.connect(clone.superuser)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statements)
    finally:
        await connection.close()
