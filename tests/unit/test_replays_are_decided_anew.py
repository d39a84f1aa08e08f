"""A reply that was paid is given out again to whoever may ask for it today, under the circumstances of today."""

from datetime import timedelta
from typing import Any, Final

import anyio
import httpx
import pytest
from msgspec.structs import replace

from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import PolicyContext
from ports.request_log import DENIED
from ports.tenant import Entitlements
from tests.support.held_backend import SAID, HeldBackend
from tests.support.stack_b import PLATFORM, StackB, policy_of, stack_b
from tests.unit.test_request_records import table
from tests.unit.test_stack_b_steps import chunks, left, said

pytestmark = [pytest.mark.anyio]

CHAT: Final = "/v1/chat/completions"
ASKED: Final[dict[str, Any]] = {
    "model": "m-1",
    "messages": [{"role": "user", "content": "write to canary.bird@example.com"}],
}
KEYS: Final = ("x-step-key", "idempotency-key")
CHANGES: Final[dict[str, tuple[Entitlements, str]]] = {
    "a rule": (
        Entitlements(models=("*",), policy=policy_of([{"id": "no", "effect": "deny", "keywords": ["write to"]}])),
        "policy_blocked",
    ),
    "an entitlement": (Entitlements(models=("other",)), "model_not_entitled"),
    "personal data": (Entitlements(models=("*",), pii={"email": "block"}), "policy_blocked"),
}


async def ask(node: StackB, key: str = "x-step-key", who: str = "acme", **more: Any) -> httpx.Response:
    headers = {key: "run_1:1", **more.pop("headers", {})}
    return await node.post(CHAT, {**ASKED, **more}, who, **headers)


async def entitle(node: StackB, clock: ManualClock, entitlements: Entitlements) -> None:
    await node.deps.tenant.set_entitlements(PLATFORM, ACME.tenant, entitlements)
    await clock.advance(timedelta(seconds=5))


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error", {}).get("code", "")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("change", CHANGES)
async def test_who_may_not_ask_any_more_gets_no_reply_that_is_there(change: str, key: str, *, stream: bool) -> None:
    backend, clock = HeldBackend(held=False), ManualClock()
    entitlements, expected = CHANGES[change]
    async with stack_b(backend, clock=clock) as node:
        assert (await ask(node, key, stream=stream)).status_code == 200
        await entitle(node, clock, entitlements)
        refused = await ask(node, key, stream=stream)
        denied = [entry for entry in table(node).audit if entry[:2] == (ACME.tenant, DENIED)]
        await entitle(node, clock, Entitlements(models=("*",)))
        again = await ask(node, key)

    assert code(refused) == (403, expected)
    assert len(denied) == 1
    assert again.json()["route"]["replayed"] is True, "it stays there for when it may be asked for"
    assert backend.calls == 1


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_who_may_not_ask_any_more_joins_no_call_either(*, stream: bool) -> None:
    backend, clock = HeldBackend(), ManualClock()
    async with stack_b(backend, clock=clock) as node, left(lambda: ask(node, stream=stream), backend):
        await entitle(node, clock, CHANGES["a rule"][0])
        with anyio.fail_after(10):
            refused = await ask(node, stream=stream)
        backend.let_go.set()

    assert code(refused) == (403, "policy_blocked")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_may_not_be_answered_any_more_is_held_back_from_a_replay(*, stream: bool) -> None:
    clock = ManualClock()
    rule = {"id": "no-halves", "effect": "deny", "on": ["output"], "keywords": ["half"]}
    async with stack_b(HeldBackend(held=False), clock=clock) as node:
        assert said(await ask(node)) == SAID
        await entitle(node, clock, Entitlements(models=("*",), policy=policy_of([rule])))
        again = await ask(node, stream=stream)

    last = chunks(again)[-1] if stream else again.json()
    assert said(again) == "" if stream else again.json()["choices"][0]["message"]["content"] in {None, ""}
    assert last["choices"][0]["finish_reason"] == "content_filter"
    assert last["policy_outcome"]["decision"] == "blocked"
    assert last["route"]["replayed"] is True


async def test_a_replay_is_counted_once_against_the_tenants_requests() -> None:
    clock = ManualClock()
    async with stack_b(HeldBackend(held=False), clock=clock, entitled={"requests_per_minute": 4}) as node:
        # Whoever is first is counted when it is let in and when it is made.
        answers = [(await ask(node)).status_code for _ in range(4)]

    assert answers == [200, 200, 200, 429]


OTHERS: Final[dict[str, dict[str, str]]] = {
    "agent": {"x-agent-id": "agt_other"},
    "session": {"x-session-id": "s-other"},
    "preference": {"x-route-preference": "cost"},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("other", OTHERS)
async def test_what_budgets_rules_and_routes_go_by_is_part_of_what_a_key_stands_for(other: str, key: str) -> None:
    async with stack_b(HeldBackend(held=False)) as node:
        first = await ask(node, key, headers={"x-agent-id": "agt_x", "x-session-id": "s"})
        same = await ask(node, key, headers={"x-agent-id": "agt_x", "x-session-id": "s"})
        refused = await ask(node, key, headers={"x-agent-id": "agt_x", "x-session-id": "s", **OTHERS[other]})

    assert first.status_code == 200
    assert same.json()["route"]["replayed"] is True
    assert code(refused) == (422, "idempotency_key_reused")


async def test_a_token_of_another_classification_does_not_replay() -> None:
    async with stack_b(HeldBackend(held=False)) as node:
        await ask(node)
        node.tokens._callers["acme"] = replace(
            node.tokens._callers["acme"], policy=PolicyContext(classification="secret")
        )
        refused = await ask(node)

    assert code(refused) == (422, "idempotency_key_reused")
