"""The official clients over every surface, with a model that is reached through LiteLLM: what they ask can be passed on."""

import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from stack_b.backends.protocol import ModelCard, Price
from stack_b.backends.provided import ProvidedBackend
from stack_b.http.completions import SURFACES
from tests.contract.test_litellm_provider import WireHarness
from tests.support.http_server import served
from tests.support.rough_backend import RoughBackend, Stall, rough_backend
from tests.support.scripted_providers import Anthropic
from tests.support.stack_b import StackB, stack_b
from tests.support.surface_clients import Client, client_for, function

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="the extra `litellm` is not installed"),
    # It and its dependencies warn about each other, while they are imported and at first calls.
    pytest.mark.filterwarnings("ignore"),
]

PRICE = Price(prompt=1_000_000, completion=5_000_000, cache_read=100_000, cache_write=1_250_000)
CALLS = (("toolu_1", "weather", '{"city": "Oslo"}'), ("toolu_2", "clock", '{"zone": "CET"}'))
TOOLS = [function("weather", "city"), function("clock", "zone")]


@asynccontextmanager
async def claude(path: str) -> AsyncIterator[tuple[WireHarness, RoughBackend, StackB, Client]]:
    async with rough_backend([Stall()]) as rough, AsyncExitStack() as closing:
        harness = WireHarness(rough, closing, Anthropic())
        backend = ProvidedBackend(
            name="up",
            provider=await harness.open(),
            at=harness.endpoint,
            models=(ModelCard(id="m-1", upstream=harness.model, price=PRICE),),
        )
        with anyio.fail_after(60):
            async with (
                stack_b(backend) as node,
                served(node.app) as url,
                client_for(path, url, max_retries=0) as client,
            ):
                yield harness, rough, node, client


def asked(rough: RoughBackend) -> Any:
    return json.loads(rough.requests[-1].partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("path", sorted(SURFACES))
async def test_every_surface_is_answered_whole_and_streamed_with_each_kind_of_token_at_its_price(path: str) -> None:
    async with claude(path) as (harness, rough, _, client):
        harness.will_answer("Hello, you.", prompt=100, completion=9, cache_read=40, cache_write=25)
        whole = await client.ask("hello", system="be brief")
        streamed = await client.stream("hello", system="be brief")

    assert (whole.text, whole.finish) == (streamed.text, streamed.finish) == ("Hello, you.", client.finishes["stop"])
    # 35 fresh, 40 read, 25 written, 9 of the answer.
    cost = 35 + 40 // 10 + 32 + 9 * 5
    for told in (whole, streamed):
        [attempt] = told.receipt["route"]["attempts"]
        assert (attempt["backend"], attempt["tokens"]) == ("up", 109)
        assert attempt["cost_nanousd"] == pytest.approx(cost, abs=1)
    assert asked(rough)["system"][0]["text"] == "be brief"


@pytest.mark.parametrize("path", sorted(SURFACES))
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_parallel_tools_go_round(path: str, *, streamed: bool) -> None:
    async with claude(path) as (harness, rough, _, client):
        ask = client.stream if streamed else client.ask
        harness.will_answer("", CALLS)
        told = await ask("weather and time in Oslo?", TOOLS)
        harness.will_answer("It rains.")
        done = await ask("", TOOLS, history=client.results(told, {call.id: "rain" for call in told.calls}))

    assert [(call.name, call.arguments) for call in told.calls] == [
        ("weather", {"city": "Oslo"}),
        ("clock", {"zone": "CET"}),
    ]
    assert told.finish == client.finishes["tool_calls"]
    assert done.text == "It rains."
    results = [part for part in asked(rough)["messages"][-1]["content"] if part["type"] == "tool_result"]
    assert [part["tool_use_id"] for part in results] == ["toolu_1", "toolu_2"]


@pytest.mark.parametrize("path", sorted(SURFACES))
async def test_its_refusals_are_told_in_our_words(path: str) -> None:
    async with claude(path) as (harness, _, _, client):
        harness.will_refuse(401)
        with pytest.raises(client.error) as refused:
            await client.ask("hello")
        harness.will_refuse(400, too_long=True)
        with pytest.raises(client.error) as too_long:
            await client.stream("hello")

    assert client.error_of(refused.value)["code"] == "upstream_auth_error"
    assert client.error_of(too_long.value)["code"] == "context_length_exceeded"
