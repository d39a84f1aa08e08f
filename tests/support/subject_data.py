"""A subject with something in every table that can have something of it, each with a word that is nowhere else."""

import base64
import uuid
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

from msgspec.structs import replace

from adapters.postgres import audit, budget, memory, queue, reply_journal, request_log, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import idempotency, intent, new_run, result
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from ports.adapter import Given
from ports.audit import Note
from ports.budget import Amount, Booking, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.context import SCOPES, AuthContext, Trace
from ports.ids import PrincipalId, TenantId, WorkerId
from ports.reply_journal import Won
from ports.request_log import RequestRecord, Written, new_request_id
from ports.run_state import Change, NewEvent
from ports.tenant import Entitlements, NewKey
from stack_b.records.recorder import CONTENT
from stack_b.vault import parse_keys
from tests.support.postgres import Clone, connected

KEYS: Final = f"tests:{'0' * 64}\n"
LARGE: Final = 100 * 1024
_WORKER: Final = WorkerId("wrk_subjects")
_LEASE: Final = timedelta(minutes=1)
_TABLES: Final = """
SELECT c.relname AS name FROM pg_class c
WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind = 'r' ORDER BY c.relname
"""


def named(word: str, tenant: TenantId = ACME.tenant) -> AuthContext:
    """Somebody whose own name has the word in it, with a trace that has."""
    return AuthContext(
        tenant=tenant, principal=PrincipalId(f"usr_{word}"), scopes=SCOPES, trace=Trace(correlation_id=f"corr-{word}")
    )


async def two_tenants(database: Clone) -> None:
    async with tenant.SPEC.open(PostgresConfig(dsn=database.control), Given(clock=SystemClock())) as tenants:
        for name in (ACME.tenant, GLOBEX.tenant):
            await tenants.create(PLATFORM, name, name=name, entitlements=Entitlements())


async def plant(database: Clone, auth: AuthContext, word: str, *, runs: int = 1) -> None:
    """`word` is in a row of the subject's in each of the tables that have any."""
    given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.app)
    async with AsyncExitStack() as stack:

        async def port(module: Any) -> Any:  # any of the adapters'
            return await stack.enter_async_context(module.SPEC.open(config, given))

        await plant_at_home(database, auth, word, runs=runs)
        await _request(await port(request_log), auth, word)
        replies = await port(reply_journal)
        won = await replies.open(auth, f"step-{uuid.uuid4()}", "digest", lease=_LEASE)
        assert isinstance(won, Won)
        await replies.complete(auth, won.ticket, {"said": word})
        ledger = await port(budget)
        hold = await ledger.hold(auth, Amount(tokens=10), on=(tokens_per_day(1_000_000),), lease=_LEASE)
        used = UsageEvent(
            request=f"req-{uuid.uuid4()}", attempt=1, principal=auth.principal, session=word, correlation_id=word,
            model="m-1", fresh_tokens=7,
        )  # fmt: skip
        await ledger.book(auth, [Booking(hold=hold.id, events=(used,), end=True)])
        tenants = await port(tenant)
        await tenants.issue_key(
            auth,
            NewKey(principal=auth.principal, scopes=frozenset({"runs:read"}), label=word, secret_sha256=bytes(32)),
        )
        await tenants.put_principal(auth, auth.principal, status="active")


async def plant_at_home(database: Clone, auth: AuthContext, word: str, *, runs: int = 1) -> None:
    """As `plant`, of what lies where the tenant lives."""
    given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.app)
    async with AsyncExitStack() as stack:

        async def port(module: Any) -> Any:  # any of the adapters'
            return await stack.enter_async_context(module.SPEC.open(config, given))

        state = await port(run_state)
        for _ in range(runs):
            await _run(state, auth, word)
        await (await port(queue)).enqueue(auth, word.encode())
        await (await port(memory)).put(auth, f"key {word}", {"said": word}, metadata={"of": word})
        log = await port(audit)
        await log.note(auth, Note(action="thing.done", subject="thing", detail=word))
        await log.note(replace(auth, principal=PrincipalId("usr_other")), Note(action="x", subject=auth.principal))


async def _run(state: Any, auth: AuthContext, word: str) -> None:
    await state.renew(NODE, _WORKER, timedelta(hours=1))
    new = replace(new_run(idempotency(f"{word}-{uuid.uuid4()}")), input=word, context={"said": word})
    run = (await state.create(auth, new)).run
    run = await state.claim(auth, run.id, _WORKER)
    event = NewEvent(type="tool.completed", data={"said": word})
    steps = (replace(intent(1), input={"said": word}), result(1, f"{word} " * (LARGE // len(word))))
    await state.append(auth, run.id, run.epoch, Change(steps=steps, events=(event,)))
    done = NewEvent(type="run.completed", data={"said": word})
    await state.append(auth, run.id, run.epoch, Change(status="succeeded", output=word, events=(done,)))


async def _request(log: Any, auth: AuthContext, word: str) -> None:
    now = SystemClock().now()
    at = now.replace(microsecond=now.microsecond // 1_000 * 1_000)
    record = RequestRecord(
        id=new_request_id(at), at=at, namespace=auth.namespace, principal=auth.principal,
        correlation_id=auth.trace.correlation_id, route="/v1/chat/completions", model_asked=word, model="m-1",
        status=200, kept_until=at + timedelta(days=90),
    )  # fmt: skip
    sealed = parse_keys(KEYS).seal(auth.tenant, CONTENT, record.id, f'{{"prompt": "{word}"}}'.encode())
    await log.write(auth, [Written(record=record, sealed=sealed)])


async def dump(database: Clone) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    found: dict[str, list[str]] = {}
    async with connected(database.superuser) as connection:
        for table in await connection.fetch(_TABLES):
            name = table["name"]
            rows = await connection.fetch(f"SELECT CAST(t AS text) AS row FROM {name} t")
            found[name] = sorted(row["row"] for row in rows)
    return found


def tables_with(rows: dict[str, list[str]], word: str) -> set[str]:
    """Where the word is, as it is or in bytes; a partition counts as its table."""
    raw = word.encode()
    forms = (word, raw.hex(), base64.b64encode(raw).decode().rstrip("="))
    found = {name for name, texts in rows.items() if any(form in text for text in texts for form in forms)}
    return {
        next((whole for whole in ("run_events", "request_records") if name.startswith(whole)), name) for name in found
    }
