"""A step key is its principal's: nobody else of the tenant uses it up, ends what is called under it, or is told of it."""

from typing import Any

import pytest
from msgspec.structs import replace

from adapters.inproc.reply_journal import InprocReplyJournal
from adapters.inproc.store import Store
from adapters.system_clock import SystemClock
from conformance.people import ACME, ACME_BEN
from ports.context import TENANT_ACT_AS, AuthContext
from ports.errors import Unavailable
from ports.ids import TenantId
from stack_b.once import of_step
from tests.support.held_backend import SPENT, HeldBackend
from tests.support.stack_b import stack_b
from tests.unit.test_request_records import records
from tests.unit.test_stack_b_steps import ASKED, KEY, abort, ask, left, said

pytestmark = [pytest.mark.anyio]


async def test_whoever_comes_first_with_anothers_key_has_used_up_nothing() -> None:
    backend = HeldBackend(held=False)
    async with stack_b(backend) as node:
        taken = await ask(node, "colleague", temperature=0.5)
        first, again = await ask(node), await ask(node)

    assert taken.status_code == 200
    assert said(first) == said(again)
    assert [answer.json()["route"]["replayed"] for answer in (first, again)] == [False, True]
    assert backend.calls == 2


async def test_a_colleague_with_the_same_request_gets_no_reply_that_another_has_paid() -> None:
    backend = HeldBackend(held=False)
    async with stack_b(backend) as node:
        await ask(node)
        other = await ask(node, "colleague")
        balance = await node.balance()

    assert other.json()["route"]["replayed"] is False
    assert balance.settled == 2 * SPENT


async def test_a_colleague_ends_nothing_and_who_tried_is_noted() -> None:
    backend = HeldBackend()
    async with stack_b(backend) as node:
        async with left(lambda: ask(node), backend):
            aborted = await abort(node, "colleague")
            backend.let_go.set()
        again = await ask(node)
        tried = [one for one in await records(node, 3) if one.route == "/v1/steps:cancel"]

    assert aborted is False
    assert again.json()["route"]["replayed"] is True
    assert backend.cancelled == 0
    assert [(one.principal, one.status, one.reasons) for one in tried] == [
        (ACME_BEN.principal, 200, ("step:nothing_under_way",))
    ]


async def test_a_colleague_ends_nothing_in_another_process_either() -> None:
    backend = HeldBackend()
    async with stack_b(backend) as node, stack_b(HeldBackend(), reply_journal=node.deps.reply_journal) as other:
        async with left(lambda: ask(node), backend):
            aborted = await abort(other, "colleague")
            backend.let_go.set()
        again = await ask(node)

    assert (aborted, backend.cancelled) == (False, 0)
    assert again.json()["route"]["replayed"] is True


async def test_another_token_of_the_same_principal_joins_and_may_end_it() -> None:
    """A worker that takes a run over mints a token of its own."""
    backend = HeldBackend()
    async with stack_b(backend) as node:
        node.tokens._callers["takeover"] = replace(node.tokens._callers["acme"], roles=frozenset({"viewer"}))
        async with left(lambda: ask(node), backend):
            aborted = await abort(node, "takeover")
            await backend.stopped.wait()
        backend.let_go.set()
        await ask(node)
        again = await ask(node, "takeover")
        ended = [one for one in await records(node, 4) if one.route == "/v1/steps:cancel"]

    assert aborted is True
    assert again.json()["route"]["replayed"] is True
    assert [(one.principal, one.reasons) for one in ended] == [(ACME.principal, ("step:aborted",))]


class _Away(InprocReplyJournal):
    away = False

    async def cancel(self, auth: AuthContext, key: str) -> bool:
        if self.away:
            raise Unavailable("the journal is away")
        return await super().cancel(auth, key)


async def test_who_ends_a_call_is_noted_while_the_journal_is_away() -> None:
    backend, journal = HeldBackend(), _Away(Store("away"), SystemClock())
    async with stack_b(backend, reply_journal=journal) as node:
        async with left(lambda: ask(node), backend):
            journal.away = True
            ended = await node.post("/v1/steps:cancel", {"step_key": KEY})
            absent = await node.post("/v1/steps:cancel", {"step_key": "another"})
            journal.away = False
            await backend.stopped.wait()
        tried = [one for one in await records(node, 3) if one.route == "/v1/steps:cancel"]

    assert [answer.status_code for answer in (ended, absent)] == [503, 503]
    assert sorted(one.reasons for one in tried) == [("step:aborted",), ("step:nothing_under_way",)]


async def test_who_acts_for_the_tenant_has_keys_of_its_own() -> None:
    own = of_step(ACME, KEY).key
    service = replace(ACME, tenant=TenantId("tnt_node"), scopes=frozenset({TENANT_ACT_AS}))

    assert of_step(service.acting_for(ACME.tenant), KEY).key != own
    assert of_step(service.acting_for(ACME.tenant), KEY).key == of_step(service.acting_for(ACME.tenant), KEY).key
    assert own.startswith(f"{KEY}/"), "whoever looks into the journal sees of which step it is"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/messages"])
async def test_so_it_is_on_every_surface(path: str) -> None:
    body: dict[str, Any] = {
        "/v1/embeddings": {"model": "agentos-demo-embed", "input": "hello"},
        "/v1/responses": {"model": "agentos-demo", "input": "hello"},
        "/v1/messages": {"model": "agentos-demo", "max_tokens": 9, "messages": ASKED["messages"]},
    }[path]
    async with stack_b() as node:
        for who in ("colleague", "acme"):
            answer = await node.post(path, body, who, **{"x-step-key": KEY})
            assert answer.status_code == 200, answer.text
            assert answer.json()["route"]["replayed"] is False
