"""Routing as clients see it: names that lead elsewhere, who answered, and what happens when nobody can."""

from typing import Any

import httpx
import pytest

from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard, Price
from stack_b.routing.breaker import MIN_FAILURES
from stack_b.routing.rules import Canary, RoutingRules
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta
from tests.support.stack_b import stack_b

pytestmark = [pytest.mark.anyio]

DOWN = Whole({"error": {"message": "down"}}, status=503)


def backend(upstream: Any, name: str, model: str, *, price: int | None = None) -> OpenAiCompatible:
    cards = (ModelCard(id=model, upstream=model, price=None if price is None else Price(prompt=price)),)
    return OpenAiCompatible(name=name, base_url=f"http://{name}/v1", dial_by=in_process(upstream), models=cards)


def served_by(answer: httpx.Response) -> tuple[str, str, list[str]]:
    route = answer.json()["route"]
    return route["backend"], route["model"], [attempt["backend"] for attempt in route["attempts"]]


async def test_an_alias_of_a_tier_falls_back_from_model_to_model_and_the_receipt_says_so() -> None:
    rules = RoutingRules(aliases={"default": "standard"}, tiers={"standard": ("large", "small")})
    one, other = ScriptedUpstream([DOWN]), ScriptedUpstream([completion()])
    async with stack_b(backend(one, "a", "large"), backend(other, "b", "small"), routing=rules) as node:
        answer = await node.chat(model="default")
        listed = (await node.get("/v1/models")).json()

    assert served_by(answer) == ("b", "small", ["a", "b"])
    assert answer.json()["model"] == "default"
    assert [model["id"] for model in listed["data"]] == ["default", "large", "small", "standard"]


async def test_who_keeps_failing_is_not_asked_any_more_and_with_nobody_left_the_client_is_told_when() -> None:
    failing, well = ScriptedUpstream([DOWN]), ScriptedUpstream([completion()])
    async with stack_b(backend(failing, "a", "m-1"), backend(well, "b", "m-1")) as node:
        for _ in range(MIN_FAILURES):
            await node.chat(model="m-1")
        after = await node.chat(model="m-1")
        well.script = [DOWN]
        for _ in range(3 * MIN_FAILURES):
            last = await node.chat(model="m-1")
        balance = await node.balance()

    assert served_by(after) == ("b", "m-1", ["b"])
    assert (last.status_code, last.json()["error"]["code"]) == (502, "upstream_error")
    assert 1 <= int(last.headers["retry-after"]) <= 5
    assert "has failed lately" in last.json()["error"]["message"]
    assert balance.held == 0


async def test_a_canary_gets_its_callers_and_its_failures_do_not_reach_them() -> None:
    rules = RoutingRules(canaries=(Canary(experiment="x", name="m-1", model="new", percent=100),))
    canary, usual = ScriptedUpstream([completion(), DOWN]), ScriptedUpstream([completion()])
    async with stack_b(backend(usual, "a", "m-1"), backend(canary, "b", "new"), routing=rules) as node:
        first = await node.chat(model="m-1")
        second = await node.chat(model="m-1")

    assert served_by(first) == ("b", "new", ["b"])
    assert served_by(second) == ("a", "m-1", ["b", "a"])


async def test_a_canary_is_no_way_to_a_model_the_tenant_may_not_use() -> None:
    rules = RoutingRules(
        aliases={"default": "new"}, canaries=(Canary(experiment="x", name="m-1", model="new", percent=100),)
    )
    canary, usual = ScriptedUpstream([completion()]), ScriptedUpstream([completion()])
    backends = (backend(usual, "a", "m-1"), backend(canary, "b", "new"))
    async with stack_b(*backends, routing=rules, models=("m-1",)) as node:
        answer = await node.chat(model="m-1")
        refused = await node.chat(model="default")

    assert served_by(answer) == ("a", "m-1", ["a"])
    assert refused.json()["error"]["code"] == "model_not_entitled"
    assert canary.requests == []


async def test_a_stream_that_breaks_after_content_is_a_failure_and_is_not_begun_anew() -> None:
    broken = ScriptedUpstream([Events([delta(content="begun")], done=False)])
    other = ScriptedUpstream([Events([delta(content="other"), delta("stop")])])
    async with stack_b(backend(broken, "a", "m-1"), backend(other, "b", "m-1")) as node:
        for _ in range(MIN_FAILURES):
            answer = await node.chat(model="m-1", stream=True)
            assert "other" not in answer.text
        states = node.deps.router.states()

    assert states["a"] == "open"
    assert other.requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_request_may_say_what_to_go_by_on_every_surface(path: str) -> None:
    rules = RoutingRules(tiers={"standard": ("dear", "cheap")})
    dear, cheap = ScriptedUpstream([completion()]), ScriptedUpstream([completion()])
    priced = (backend(dear, "a", "dear", price=9), backend(cheap, "b", "cheap", price=1))
    turn = [{"role": "user", "content": "hello"}]
    body = {"model": "standard", "max_tokens": 9, "messages": turn}
    if path.endswith("responses"):
        body = {"model": "standard", "input": turn}
    async with stack_b(*priced, routing=rules) as node:
        usual = await node.post(path, body)
        cheaper = await node.post(path, body, **{"x-route-preference": "cost"})
        odd = await node.post(path, body, **{"x-route-preference": "luck"})

    assert (served_by(usual)[1], served_by(cheaper)[1]) == ("dear", "cheap")
    assert odd.status_code in {400, 422}
    assert "quality, cost, latency" in odd.json()["error"]["message"]


async def test_a_tool_with_a_parameter_called_type_is_no_picture() -> None:
    schema = {"type": "object", "properties": {"type": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    async with stack_b(backend(ScriptedUpstream([completion()]), "a", "m-1")) as node:
        answer = await node.chat(model="m-1", tools=[tool])

    assert answer.status_code == 200


@pytest.mark.parametrize("schema", [{"properties": False}, {"properties": {"location": False}, "required": "location"}])
async def test_the_demo_backend_takes_any_schema_a_client_may_send(schema: dict[str, Any]) -> None:
    async with stack_b() as node:
        for name in ("get_weather", "calculator", "memory_put"):
            tool = {"type": "function", "function": {"name": name, "parameters": schema}}
            answer = await node.chat(f"use {name}: what is 2 + 2? remember that", tools=[tool])

            assert answer.status_code < 500


async def test_whatever_a_backend_says_of_its_details_an_answer_stays_an_answer() -> None:
    odd = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": "n/a"}
    odd |= {"completion_tokens_details": [1]}
    async with stack_b(backend(ScriptedUpstream([completion(usage=odd)]), "a", "m-1")) as node:
        answer = await node.chat(model="m-1")
        balance = await node.balance()

    assert (answer.status_code, balance.settled) == (200, 7)


async def test_a_name_that_budgets_are_counted_by_has_an_end() -> None:
    async with stack_b(backend(ScriptedUpstream([completion()]), "a", "m-1")) as node:
        allowed = await node.chat(model="m-1", metadata={"agent_id": "a" * 256})
        refused = await node.chat(model="m-1", metadata={"agent_id": "a" * 257})

    assert (allowed.status_code, refused.json()["error"]["code"]) == (200, "validation_failed")
