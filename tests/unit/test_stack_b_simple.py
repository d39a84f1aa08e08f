"""What is found of a plain request at once, where nothing but its texts is left to decide, is what is found by looking."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ports.errors import AgentOSError
from ports.tenant import StorePrompts
from stack_b.caller import Caller
from stack_b.canonical import About, ChatCall, Encoded
from stack_b.http.parse import chat_call
from stack_b.limits import Limits
from stack_b.pipeline import Pipeline
from stack_b.prepare import Ready
from stack_b.receipt import Trail
from stack_b.tell import Tell
from tests.support.stack_b import CALLERS, StackB, stack_b
from tests.unit.test_stack_b_plain import PLAIN

pytestmark = [pytest.mark.anyio]

AUTH = CALLERS["acme"]
LIMITS = Limits()
MODEL = "agentos-demo"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello there, and how are you?"}]}
NODES: Mapping[str, Mapping[str, Any]] = {
    "nothing more": {},
    "blocks": {"pii_modes": {"email": "block"}},
    "keeps placeholders": {"pii_modes": {"email": "reversible"}, "placeholder_key": bytes(32)},
    "allows": {"pii_modes": {"email": "allow"}},
    "a rule of the node": {"node_rules": [{"id": "no-hello", "effect": "deny", "keywords": ["hello"]}]},
    "few models": {"models": ["other"]},
    "few requests": {"entitled": {"requests_per_minute": 3}},
    "keeps prompts": {"entitled": {"store_prompts": StorePrompts(retention_days=3)}},
    "short texts": {"limits": Limits(inspected_chars=300)},
}


def told(call: ChatCall, trail: Trail, ready: Ready | AgentOSError) -> object:
    """All that goes on from there."""
    if isinstance(ready, AgentOSError):
        return (ready.code, ready.message, ready.details, trail.outcome)
    names = [(one.backend.name, one.card) for one in ready.candidates]
    texts = None if trail.texts is None else (trail.texts.keep, trail.texts.prompt)
    held = (
        ready.ask,
        ready.plan.also,
        ready.plan.nanousd,
        ready.plan.money,
        ready.plan.about,
        ready.limit,
        ready.sent_bytes,
    )
    sent = (dict(ready.body), ready.body.json if isinstance(ready.body, Encoded) else None)
    return (names, ready.asked, sent, held, type(ready.answer), ready.answer.ended, trail.outcome, texts, call.model)


async def prepared(node: StackB, pipeline: Pipeline, call: ChatCall) -> object:
    trail = Trail(AUTH, node.deps.clock)
    try:
        return told(call, trail, await pipeline._prepare.chat(AUTH, call, trail, Caller()))
    except AgentOSError as error:
        return told(call, trail, error)


async def outcomes(calls: Sequence[ChatCall], node: Mapping[str, Any]) -> list[object]:
    async with stack_b(**node) as opened:
        pipeline = Pipeline(opened.deps, Tell(opened.deps.metrics))
        try:
            return [await prepared(opened, pipeline, call) for call in calls]
        finally:
            await pipeline.drain()


@pytest.mark.parametrize("name", NODES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies=st.lists(PLAIN, min_size=1, max_size=4))
async def test_what_is_found_at_once_is_what_is_found_by_looking(name: str, bodies: list[dict[str, Any]]) -> None:
    # The first one waits for what is not at hand yet; each comes again, when its texts are remembered.
    calls = [
        chat_call({**body, "model": model}, LIMITS)
        for body in [HELLO, *bodies, *bodies, HELLO]
        for model in (MODEL, "x")
    ]

    at_once = await outcomes(calls, NODES[name])
    looked = await outcomes([replace(call, plain=None) for call in calls], NODES[name])

    assert at_once == looked


async def test_most_requests_are_simple_and_those_that_say_more_are_not() -> None:
    call = chat_call(HELLO, LIMITS)
    async with stack_b() as node:
        prepare = (pipeline := Pipeline(node.deps, Tell(node.deps.metrics)))._prepare
        assert prepare._simply(AUTH, call) is None, "nothing is at hand yet"
        await prepared(node, pipeline, call)

        assert prepare._simply(AUTH, call) is not None
        assert prepare._simply(AUTH, replace(call, about=About(agent="a"))) is None
        assert prepare._simply(AUTH, replace(call, preference="cost")) is None
        assert prepare._simply(AUTH, replace(call, members=dict(call.members))) is None
        assert prepare._simply(AUTH, replace(call, model="none")) is None
        assert prepare._simply(CALLERS["globex"], call) is None
        await pipeline.drain()


async def test_each_is_counted_once() -> None:
    call = chat_call(HELLO, LIMITS)
    limited = ("rate_limited", "rate_limited")

    found = await outcomes([call] * 5, {"entitled": {"requests_per_minute": 3}})

    assert tuple(one[0] for one in found[3:] if isinstance(one, tuple)) == limited
    assert not any(isinstance(one, tuple) and one[0] == "rate_limited" for one in found[:3])
