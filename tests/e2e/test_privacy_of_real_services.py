"""What the services themselves write of a subject, they write in its name: real processes, and nothing of it is left."""

from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from adapters.postgres import privacy, request_log
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, PLATFORM
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.model import ChatRequest, Message
from ports.request_log import READ
from ports.run_state import TERMINAL
from ports.tenant import Entitlements, StorePrompts
from tests.support.ports import free_ports
from tests.support.real_stacks import AGENT, LIMIT, MODEL_ID, Provider, real_stacks
from tests.support.scripted_upstream import delta
from tests.support.subject_data import dump, tables_with

WORD: Final = "c4n4ry"
REMEMBERS: Final = AgentSpec(id=AGENT.id, model=MODEL_ID, instructions="Remember.", tools=("memory_put",))
GIVEN: Final = Given(clock=SystemClock())


class Rememberer(Provider):
    """Has what it was told remembered, and says it again."""

    def deltas(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        last = body["messages"][-1]
        if last["role"] == "user" and body.get("tools"):
            call = {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "memory_put", "arguments": f'{{"text": "{WORD}", "key": "of {WORD}"}}'},
            }
            return [delta(role="assistant", tool_calls=[call]), delta("tool_calls")]
        return [delta(role="assistant", content=f"so {WORD}"), delta("stop")]


@pytest.mark.anyio
async def test_all_that_a_run_and_a_request_leave_goes_with_their_subject(tmp_path: Path) -> None:
    provider = Rememberer()
    provider.let_go.set()
    async with real_stacks(tmp_path, free_ports(2), provider=provider, agent=REMEMBERS) as stacks:
        kept = Entitlements(models=("*",), tokens_per_day=LIMIT, store_prompts=StorePrompts(retention_days=30))
        await stacks.tenants.set_entitlements(PLATFORM, ACME.tenant, kept)
        await stacks.gateway.start()
        await stacks.worker.start()
        run_id = await stacks.created(f"about {WORD}")
        with anyio.fail_after(60):
            while (await stacks.run(run_id)).status not in TERMINAL:  # noqa: ASYNC110 - another process
                await anyio.sleep(0.05)
        asked = ChatRequest(
            model=MODEL_ID, messages=(Message(role="user", content=f"about {WORD}"),), max_tokens=50, step_key="direct"
        )
        await stacks.model.chat(ACME, asked)
        await _recorded(stacks.database.app, 3)
        before = await dump(stacks.database)

        async with privacy.SPEC.open(PostgresConfig(dsn=stacks.database.control), GIVEN) as port:
            with anyio.fail_after(30):
                while not (done := await port.erase(PLATFORM, ACME.tenant, ACME.principal)).done:
                    pass
        after = await dump(stacks.database)

    assert done.counts.runs == 1
    assert tables_with(before, WORD) >= {"runs", "steps", "run_events", "memory_items", "idempotency"}
    assert tables_with(before, ACME.principal) >= {
        "request_records", "request_contents", "model_replies", "usage_events", "memory_items", "audit_log",
    }  # fmt: skip
    assert tables_with(after, WORD) == set()
    assert tables_with(after, ACME.principal) == set()
    for name in ("request_contents", "model_replies", "memory_items", "memory_words", "runs", "blobs"):
        assert after[name] == [], name
    assert len(after["usage_events"]) == len(before["usage_events"])


async def _recorded(dsn: str, requests: int) -> None:
    """The gateway writes records behind its answers."""
    reader = replace(ACME, scopes=frozenset({READ}))
    async with request_log.SPEC.open(PostgresConfig(dsn=dsn), GIVEN) as log:
        with anyio.fail_after(30):
            while len((await log.recent(reader, limit=10)).items) < requests:  # noqa: ASYNC110 - another process
                await anyio.sleep(0.05)
