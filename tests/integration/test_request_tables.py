"""What the gateway writes down of requests, as it stands in the database, and as an operator reads it."""

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from anyio import to_thread
from msgspec.structs import replace

from adapters.postgres import budget, reply_journal, request_log
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME
from deploy import credentials
from deploy.node import Node, write_private
from ports.adapter import Given
from ports.tenant import StorePrompts
from stack_b.vault import new_line, parse_keys
from tests.support.cli import Said, agentos
from tests.support.held_backend import HeldBackend
from tests.support.postgres import Clone, cloned, fetch
from tests.support.scripted_upstream import usage
from tests.support.stack_b import PLATFORM, StackB, stack_b

pytestmark = [pytest.mark.anyio]

CHAT: Final = "/v1/chat/completions"
EMAIL: Final = "canary.bird@example.com"
SECRET: Final = "sk-canary-0123456789abcdefghijklmnop"
WORD: Final = "kookaburra"
KEY: Final = new_line()
HEXADECIMAL: Final = re.compile(r'"\\\\x((?:[0-9a-f]{2})+)"')
BASE64: Final = re.compile(r'"((?:[A-Za-z0-9+/]{4}){8,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"')
NEW: Final = ("request_records", "request_contents", "model_replies", "audit_log", "usage_events")


class Echo(HeldBackend):
    """Says what it was told."""

    async def chat(self, model: str, body: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        answer = await super().chat(model, body, max_tokens)
        answer["choices"][0]["message"]["content"] = f"you said {body['messages'][0]['content']}"
        return {**answer, "usage": usage(10, 20)}


@pytest.fixture
async def database() -> AsyncIterator[Clone]:
    async with cloned() as database:
        yield database


@asynccontextmanager
async def gateway(database: Clone, *, keep: int | None = None, **settings: Any) -> AsyncIterator[StackB]:
    """Over PostgreSQL, as far as it is about requests. What it still has to write is written when the block ends."""
    config, given = PostgresConfig(dsn=database.app), Given(clock=SystemClock())
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(request_log.SPEC.open(config, given))
        journal = await stack.enter_async_context(reply_journal.SPEC.open(config, given))
        ledger = await stack.enter_async_context(budget.SPEC.open(config, given))
        ports: dict[str, Any] = {"request_log": log, "reply_journal": journal, "budget": ledger}
        made = stack_b(Echo(held=False), vault=parse_keys(KEY), **ports, **settings)
        node = await stack.enter_async_context(made)
        if keep is not None:
            tenant = await node.deps.tenant.get(PLATFORM, ACME.tenant)
            wanted = replace(tenant.entitlements, store_prompts=StorePrompts(retention_days=keep))
            await node.deps.tenant.set_entitlements(PLATFORM, ACME.tenant, wanted)
        yield node


async def ask(node: StackB, **headers: str) -> str:
    said = f"tell {EMAIL} my key {SECRET} and {WORD}"
    answer = await node.post(CHAT, {"model": "m-1", "messages": [{"role": "user", "content": said}]}, **headers)
    return answer.text


async def dump(database: Clone) -> str:
    """All rows, and what their bytes say to whoever reads them as a text."""
    rows: list[str] = []
    for name in NEW:
        rows += [row[0] for row in await fetch(database.admin, f"SELECT CAST(row_to_json(t) AS text) FROM {name} t")]
    written = "\n".join(rows)
    raw = [bytes.fromhex(found) for found in HEXADECIMAL.findall(written)]
    raw += [base64.b64decode(found) for found in BASE64.findall(written)]
    return "\n".join((written, *(one.decode("utf-8", "replace") for one in raw)))


@pytest.mark.parametrize("keep", [None, 7], ids=["not kept", "kept"])
async def test_no_table_has_a_text_or_a_secret_in_clear(database: Clone, keep: int | None) -> None:
    async with gateway(database, keep=keep, pii_modes={"email": "reversible"}) as node:
        told = [await ask(node), await ask(node, **{"idempotency-key": f"pay {WORD}"})]
        told.append(await ask(node, **{"idempotency-key": f"pay {WORD}"}))
        denied = await node.post(CHAT, {"model": "no", "messages": [{"role": "user", "content": WORD}]})

    everything = await dump(database)
    records = await fetch(database.admin, "SELECT status, replayed FROM request_records ORDER BY id")
    contents = await fetch(database.admin, "SELECT id FROM request_contents")
    assert all(EMAIL in text and WORD in text for text in told)
    assert denied.status_code == 403
    assert [tuple(row) for row in records] == [(200, False), (200, False), (200, True), (403, False)]
    assert len(contents) == (0 if keep is None else 2)
    assert not [word for word in (EMAIL, SECRET, WORD, "acme-key", KEY.strip()) if word in everything]
    assert '"action":"model.deny"' in everything


async def test_what_is_written_is_its_tenants_to_see(database: Clone) -> None:
    async with gateway(database, keep=7) as node:
        await ask(node)
    connection = await asyncpg.connect(database.app, server_settings={"search_path": "agentos"})
    seen: dict[str, list[int]] = {}
    try:
        for tenant in ("tnt_acme", "tnt_globex"):
            async with connection.transaction():
                await connection.execute(f"SET LOCAL app.tenant_id = '{tenant}'")
                seen[tenant] = [
                    await connection.fetchval(f"SELECT count(*) FROM {name}")
                    for name in ("request_records", "request_contents")
                ]
        [part] = await fetch(database.admin, "SELECT tableoid::regclass::text AS name FROM request_records LIMIT 1")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"SELECT * FROM {part['name']}")
        for change in ("UPDATE request_records SET status = 1", "DELETE FROM request_contents"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(change)
    finally:
        await connection.close()

    assert seen == {"tnt_acme": [1, 1], "tnt_globex": [0, 0]}
    assert part["name"].startswith("request_records_20")


class TestCommands:
    @pytest.fixture
    async def environ(self, tmp_path: Path, database: Clone) -> dict[str, str]:
        node = Node.locate({"AGENTOS_HOME": str(tmp_path / "home")})
        node.create()
        write_private(node.secret(credentials.CONTROL_URL), database.control)
        write_private(node.secret(credentials.RECORD_KEYS), KEY)
        environ = {"AGENTOS_HOME": str(tmp_path / "home")}
        created = await self.said(environ, "tenant", "create", ACME.tenant)
        assert created.code == 0, created.err
        async with gateway(database, keep=7) as gate:
            await ask(gate)
            await gate.post(CHAT, {"model": "no", "messages": [{"role": "user", "content": "x"}]})
        return environ

    @staticmethod
    async def said(environ: dict[str, str], *arguments: str) -> Said:
        return await to_thread.run_sync(lambda: agentos(*arguments, environ=environ))

    async def test_requests_are_listed_in_pages_and_shown(self, environ: dict[str, str]) -> None:
        first = json.loads(
            (await self.said(environ, "requests", "list", "--tenant", "tnt_acme", "--limit", "1", "--json")).out
        )
        cursor = first["next_cursor"]
        second = json.loads(
            (
                await self.said(
                    environ, "requests", "list", "--tenant", "tnt_acme", "--limit", "1", "--cursor", cursor, "--json"
                )
            ).out
        )
        table = await self.said(environ, "requests", "list", "--tenant", "tnt_acme")
        [newest], [oldest] = first["requests"], second["requests"]
        shown = json.loads((await self.said(environ, "requests", "show", oldest["id"], "--tenant", "tnt_acme")).out)
        foreign = await self.said(environ, "requests", "show", oldest["id"], "--tenant", "tnt_globex")

        assert (newest["code"], newest["denied"], oldest["status"]) == ("model_not_entitled", True, 200)
        assert second["next_cursor"] is None
        assert shown == oldest
        assert oldest["id"] in table.out
        assert "held/m-1" in table.out
        assert (foreign.code, "there is no request" in foreign.err) == (1, True)

    async def test_texts_are_read_with_the_nodes_key_and_that_is_audited(
        self, environ: dict[str, str], database: Clone
    ) -> None:
        found = json.loads((await self.said(environ, "requests", "list", "--tenant", "tnt_acme", "--json")).out)
        request = found["requests"][-1]["id"]
        arguments = ("requests", "show", request, "--tenant", "tnt_acme", "--texts", "--json")
        read = json.loads((await self.said(environ, *arguments)).out)
        write_private(Node.locate(environ).secret(credentials.RECORD_KEYS), new_line())
        other = await self.said(environ, *arguments)
        Node.locate(environ).secret(credentials.RECORD_KEYS).unlink()
        without = await self.said(environ, *arguments)

        audit = await fetch(
            database.admin, "SELECT principal, subject FROM audit_log WHERE action = 'request.read' ORDER BY id"
        )
        assert WORD in read["texts"]["prompt"]["messages"][0]["content"]
        assert read["texts"]["prompt"]["messages"][0]["content"].startswith("tell [EMAIL] my key [")
        assert WORD in read["texts"]["answer"][0]["message"]["content"]
        assert other.code != 0
        assert "is not among those of this node" in other.err
        assert WORD not in other.out + other.err
        assert without.code != 0
        assert "put that file back" in without.err
        assert [tuple(row) for row in audit[:1]] == [("usr_operator", request)]

    async def test_usage_is_by_day_and_model(self, environ: dict[str, str]) -> None:
        found = json.loads((await self.said(environ, "usage", "tnt_acme", "--json")).out)["usage"]
        table = await self.said(environ, "usage", "tnt_acme", "--days", "1")

        assert [(one["model"], one["requests"], one["denied"], one["prompt_tokens"]) for one in found] == [
            ("", 1, 1, 0),
            ("m-1", 1, 0, 10),
        ]
        assert "m-1" in table.out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("requests", "list", "--tenant", "Acme"), "can't name a tenant"),
            (("requests", "list", "--tenant", "tnt_acme", "--limit", "0"), "--limit must be 1 to 200"),
            (("requests", "list", "--tenant", "tnt_acme", "--cursor", "x"), "not one of this listing"),
            (("requests", "show", "req_x", "--tenant", "tnt_acme"), "there is no request"),
            (("usage", "tnt_acme", "--days", "999"), "--days must be 1 to 366"),
            (("tenant", "create", "tnt_x", "--store-prompts", "91"), "--store-prompts must be 0 to 90"),
        ],
    )
    async def test_what_makes_no_sense_is_refused_with_a_sentence(
        self, environ: dict[str, str], arguments: tuple[str, ...], said: str
    ) -> None:
        answer = await self.said(environ, *arguments)

        assert answer.code != 0
        assert said in answer.err
        assert "Traceback" not in answer.err


async def test_a_tenants_texts_are_kept_by_command(database: Clone, tmp_path: Path) -> None:
    node = Node.locate({"AGENTOS_HOME": str(tmp_path / "home")})
    node.create()
    write_private(node.secret(credentials.CONTROL_URL), database.control)
    environ = {"AGENTOS_HOME": str(tmp_path / "home")}

    def run(*arguments: str) -> Said:
        return agentos(*arguments, environ=environ)

    await to_thread.run_sync(run, "tenant", "create", "tnt_acme")
    quota = ("tenant", "quota", "tnt_acme", "--json")
    found = [
        json.loads((await to_thread.run_sync(run, *quota, *more)).out)["entitlements"]["store_prompts"]
        for more in ((), ("--store-prompts", "30"), ("--weight", "2"), ("--store-prompts", "0"))
    ]
    audit = await fetch(database.admin, "SELECT action FROM audit_log ORDER BY id")

    assert found == [None, {"retention_days": 30}, {"retention_days": 30}, None]
    assert [row["action"] for row in audit] == ["tenant.create", *["tenant.entitle"] * 3]
