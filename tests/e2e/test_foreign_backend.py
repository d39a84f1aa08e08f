"""Done-item 4: a real OpenAI-compatible server that isn't ours, as a backend by URL alone.

The way of a request: our gateway → LiteLLM's proxy → a second gateway of ours, whose demo backend plays the model.
"""

import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from adapters.system_clock import SystemClock
from stack_b.backends.settings import BackendSettings, open_backend
from tests.support.http_server import served
from tests.support.litellm_proxy import KEY, litellm_proxy
from tests.support.stack_b import StackB, stack_b

pytestmark = [pytest.mark.anyio]

CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


@pytest.fixture(scope="module")
async def proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    home: Path = tmp_path_factory.mktemp("litellm")
    async with stack_b() as model, served(model.app) as url, litellm_proxy(home, f"{url}/v1", "acme") as base_url:
        yield base_url


@pytest.fixture
async def node(proxy: str) -> AsyncIterator[StackB]:
    settings = BackendSettings(name="litellm", base_url=proxy, api_key="env:KEY")
    opened = open_backend(settings, SystemClock(), secret=lambda _: KEY, demo=False)
    with anyio.fail_after(60):
        async with aclosing(opened) as backend, stack_b(backend) as gateway:
            yield gateway


def frames(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_its_models_are_found_and_served(node: StackB) -> None:
    models = (await node.get("/v1/models")).json()["data"]

    assert [(model["id"], model["owned_by"], model["chat"]) for model in models] == [
        ("foreign-demo", "litellm", True),
        ("foreign-embed", "litellm", False),
    ]


async def test_it_chats_with_a_receipt_of_ours(node: StackB) -> None:
    reply = (await node.chat("hello", model="foreign-demo")).json()

    assert "not a language model" in reply["choices"][0]["message"]["content"]
    assert reply["model"] == "foreign-demo"
    assert reply["route"]["backend"] == "litellm"
    assert reply["usage"]["estimated"] is False
    assert (await node.balance()).settled == reply["usage"]["total_tokens"] > 0


async def test_it_streams_the_same_text_and_its_usage_is_settled(node: StackB) -> None:
    whole = (await node.chat("what is 2 + 2", model="foreign-demo")).json()
    settled = (await node.balance()).settled
    chunks = frames((await node.chat("what is 2 + 2", model="foreign-demo", stream=True)).text)

    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["estimated"] is False
    assert (await node.balance()).settled == settled + chunks[-1]["usage"]["total_tokens"]
    assert (await node.balance()).held == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_through_whole(node: StackB, *, stream: bool) -> None:
    answer = await node.chat("what is 2 + 2 and 3 * 3", model="foreign-demo", tools=[CALCULATOR], stream=stream)

    if stream:
        [calls] = [
            chunk["choices"][0]["delta"]["tool_calls"]
            for chunk in frames(answer.text)
            if "tool_calls" in chunk["choices"][0]["delta"]
        ]
    else:
        calls = answer.json()["choices"][0]["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        {"expression": "2 + 2"},
        {"expression": "3 * 3"},
    ]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_it_embeds(node: StackB, encoding: str) -> None:
    body = {"model": "foreign-embed", "input": ["red apple", "green apple"], "encoding_format": encoding}

    answer = (await node.post("/v1/embeddings", body)).json()

    vectors = [item["embedding"] for item in answer["data"]]
    if encoding == "base64":
        vectors = [list(struct.unpack("<256f", base64.b64decode(vector))) for vector in vectors]
    assert [len(vector) for vector in vectors] == [256, 256]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1.0, abs=1e-5)
