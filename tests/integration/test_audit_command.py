"""`agentos audit` against a database, without a node that runs."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from adapters.postgres import audit
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key
from conformance.people import ACME, GLOBEX
from deploy import credentials
from deploy.node import Node
from ports.adapter import Given
from ports.audit import Note
from tests.support.cli import agentos, home_of
from tests.support.postgres import Clone, clone, drop, execute


@pytest.fixture
def database() -> Iterator[Clone]:
    made = asyncio.run(clone())
    asyncio.run(_noted(made))
    yield made
    asyncio.run(drop(made))


@pytest.fixture
def environ(database: Clone, tmp_path: Path) -> dict[str, str]:
    made = home_of(database, tmp_path)
    generate_key(Node.locate(made).secret(credentials.AUDIT_KEY))
    return made


async def _noted(database: Clone) -> None:
    async with AsyncExitStack() as stack:
        opening = audit.SPEC.open(PostgresConfig(dsn=database.app), Given(clock=SystemClock()))
        log = await stack.enter_async_context(opening)
        for n in range(4):
            await log.note(ACME, Note(action="key.issue", subject=f"key_{n}"))
        await log.note(ACME, Note(action="route.deny", subject="/v1/x", outcome="denied", detail="insufficient_scope"))
        await log.note(GLOBEX, Note(action="theirs", subject="x"))


def test_entries_are_asked_for_page_by_page_and_the_look_is_noted(environ: dict[str, str]) -> None:
    first = agentos(
        "audit", "query", "--tenant", "tnt_acme", "--action", "key.*", "--limit", "3", "--json", environ=environ
    )
    page = json.loads(first.out)
    rest = agentos(
        "audit", "query", "--tenant", "tnt_acme", "--action", "key.*", "--cursor", page["next_cursor"], environ=environ
    )
    denied = agentos("audit", "query", "--tenant", "tnt_acme", "--denied", environ=environ)
    looks = agentos("audit", "query", "--tenant", "tnt_acme", "--action", "audit.read", "--json", environ=environ)
    wrong = agentos("audit", "query", "--tenant", "tnt_acme", "--since", "yesterday", environ=environ)

    assert [one["entry"]["subject"] for one in page["entries"]] == ["key_3", "key_2", "key_1"]
    assert (rest.code, "key_0" in rest.out, "theirs" in rest.out) == (0, True, False)
    assert "insufficient_scope" in denied.out
    assert {one["entry"]["actor_tenant"] for one in json.loads(looks.out)["entries"]} == {"tnt_system"}
    assert len(json.loads(looks.out)["entries"]) == 3
    assert (wrong.code, "2026-11-28" in wrong.err) == (2, True)


def test_what_was_signed_is_verified_and_what_was_changed_named(
    environ: dict[str, str], database: Clone, tmp_path: Path
) -> None:
    unsigned = agentos("audit", "verify", environ=environ)
    signed = agentos("audit", "sign", environ=environ)
    good = agentos("audit", "verify", "--json", environ=environ)
    out = str(tmp_path / "acme.jsonl")
    exported = agentos("audit", "export", "--tenant", "tnt_acme", "--out", out, environ=environ)
    again = agentos("audit", "export", "--tenant", "tnt_acme", "--out", out, environ=environ)
    # Entries 4 and later, and the head with them, as if they had never been.
    asyncio.run(
        execute(
            database.superuser,
            "SET search_path = agentos; DELETE FROM audit_chain WHERE tenant_id = 'tnt_acme' AND seq > 3; "
            "UPDATE audit_heads h SET seq = 3, hash = c.hash FROM audit_chain c "
            "WHERE h.tenant_id = 'tnt_acme' AND c.tenant_id = 'tnt_acme' AND c.seq = 3",
        )
    )
    bad = agentos("audit", "verify", environ=environ)
    heads, key = (str(tmp_path / "home" / "audit" / name) for name in ("heads.jsonl", "public_key.pem"))
    elsewhere = {"AGENTOS_HOME": str(tmp_path / "nowhere")}
    offline = agentos("audit", "verify", "--export", out, "--heads", heads, "--key", key, environ=elsewhere)

    assert (unsigned.code, "no signed heads are at hand" in unsigned.err) == (0, True)
    assert (signed.code, good.code, json.loads(good.out)["good"]) == (0, 0, True)
    assert (exported.code, again.code, "never goes over another" in again.err) == (0, 2, True)
    assert (bad.code, "tnt_acme: number 4: the chain ends at 3" in bad.err) == (2, True)
    assert (offline.code, "ok" in offline.out) == (0, True)


def test_a_key_that_is_not_the_signers_proves_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    agentos("audit", "sign", environ=environ)
    generate_key(tmp_path / "other.pem")

    said = agentos("audit", "verify", "--key", str(tmp_path / "other.pem"), environ=environ)
    missing = agentos("audit", "verify", "--heads", str(tmp_path / "none.jsonl"), environ=environ)

    assert (said.code, "which is none that was given" in said.err) == (2, True)
    assert missing.code == 2
