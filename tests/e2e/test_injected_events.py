"""What a model, a tool or a client says is data: whatever it says, no event, field or header of ours comes of it.

A stream is read twice: as its specification says, and by lines as many clients read text, which know of more line ends.
"""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import pytest

from adapters.inproc.model import scripted
from adapters.inproc.tool import InprocTools, PythonTool
from conformance.clock import ManualClock
from ports.context import AuthContext
from ports.messages import Json
from ports.model import Message, ToolRequest
from ports.tool import ToolSpec
from tests.support.http_server import served
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_a import stack_a
from tests.support.stack_b import stack_b, upstream_at
from tests.support.worker import model

pytestmark = pytest.mark.anyio

ENDS: Final = ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
_LINES: Final = (
    "say",
    "",
    "id: 1.99",
    "event: injected",
    'data: {"injected":1}',
    "",
    ": lagged",
    "",
    "data: [DONE]",
    "",
)
INJECTED: Final = "".join(end.join((*_LINES, "")) for end in ENDS)
AS_ACME: Final = {"authorization": "Bearer acme"}
Read = Callable[[bytes], list[str]]


def by_specification(raw: bytes) -> list[str]:
    return re.split(r"\r\n|\n|\r", raw.decode())


def by_lines(raw: bytes) -> list[str]:
    return raw.decode().splitlines()


def events_in(lines: list[str]) -> list[tuple[str, str]]:
    """Type and data of each, and every field that is none of ours."""
    found, fields = [], dict[str, str]()
    for line in [*lines, ""]:
        name, _, value = line.partition(":")
        if line.startswith(":"):
            assert line == ": keep-alive"
        elif line:
            assert name in {"id", "event", "data"}, line[:100]
            assert name not in fields, line[:100]
            fields[name] = value.removeprefix(" ")
        elif fields:
            found.append((fields.get("event", ""), fields["data"]))
            fields = {}
    return found


@pytest.fixture(params=[by_specification, by_lines])
def read(request: Any) -> Read:
    found: Read = request.param
    return found


async def test_neither_input_nor_model_nor_tool_makes_an_event_of_a_run(read: Read) -> None:
    clock = ManualClock()

    async def say(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        return {"said": INJECTED, INJECTED: 1}

    schema: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
    tool = PythonTool(spec=ToolSpec(name="add", description="adds", input_schema=schema, effect="pure"), act=say)
    arguments = json.dumps({"of": INJECTED}, ensure_ascii=False)
    asked = ToolRequest(id=INJECTED[:60], name="add", arguments="{}")
    made_up = ToolRequest(id="call_2", name=INJECTED, arguments=arguments)
    said: list[Message | str] = [Message(role="assistant", content=INJECTED, tool_calls=(asked, made_up)), INJECTED]
    async with stack_a(clock=clock) as node, node.worker(model(scripted(said)), InprocTools([tool], clock)):
        run_id = await node.created(input={INJECTED: INJECTED}, context={"of": INJECTED})
        run = await node.ended(run_id)
        raw = (await node.get(f"/v1/runs/{run_id}/events")).content

    events = events_in(read(raw))
    told = [json.loads(data) for _, data in events]
    assert run.status == "succeeded"
    assert [event["sequence"] for event in told] == list(range(1, len(told) + 1))
    assert [kind for kind, _ in events] == [event["type"] for event in told]
    assert "injected" not in {kind for kind, _ in events}
    assert told[-1]["data"]["output"] == {"text": INJECTED}


@asynccontextmanager
async def gateway(upstream: ScriptedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    with anyio.fail_after(30):
        async with (
            served(upstream) as url,
            upstream_at(f"{url}/v1", api_key="sk-upstream") as backend,
            stack_b(backend) as node,
            served(node.app) as address,
            httpx.AsyncClient(base_url=address, headers=AS_ACME) as client,
        ):
            yield client


PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10_000},
}


@pytest.mark.parametrize("path", PATHS)
async def test_no_answer_of_a_model_makes_an_event_of_a_stream(path: str, read: Read) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "t", "arguments": '{"a":1}'}}
    pieces = [INJECTED[at : at + 7] for at in range(0, len(INJECTED), 7)]
    chunks = [
        delta(role="assistant", content=""),
        *(delta(content=piece) for piece in pieces),
        delta(content=INJECTED),
        delta(tool_calls=[call]),
        delta("tool_calls"),
        {"id": f"up{INJECTED}", "model": f"m-1{INJECTED}", "choices": [], "usage": usage(7, 5)},
    ]
    raw_chunks = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    async with gateway(ScriptedUpstream([Events(raw_chunks)])) as client:
        answer = await client.post(path, json={"model": "m-1", "stream": True, **PATHS[path]})

    events = events_in(read(answer.content))
    data = [json.loads(data) for _, data in events if data != "[DONE]"]
    assert answer.status_code == 200
    assert "injected" not in {kind for kind, _ in events}
    assert not any(one.get("injected") for one in data)
    # All of it arrived, as text.
    assert "".join(_texts(data)).count("say") >= 2 * len(ENDS)
    assert [data for _, data in events].count("[DONE]") == (path == "/v1/chat/completions")


def _texts(value: Json) -> list[str]:
    """What deltas say, on any surface."""
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    if isinstance(value, dict):
        if value.get("type") == "response.output_text.delta":
            return [value["delta"]]
        named = [value[name] for name in ("content", "text") if isinstance(value.get(name), str)]
        return [*named, *_texts([one for name, one in value.items() if name in {"choices", "delta"}])]
    return []


@pytest.mark.parametrize("path", PATHS)
async def test_no_answer_of_a_backend_makes_a_header(path: str) -> None:
    evil = "m\r\nx-evil: 1\r\n\r\nx"
    answer = completion(evil, usage=usage(7, 5)).body | {"model": evil, "id": evil, "system_fingerprint": evil}
    refusal = {"error": {"message": evil, "code": evil, "type": evil, "param": evil}}
    for told in (
        Whole(answer),
        Whole(refusal, status=400),
        Whole(refusal, status=429, headers=(("retry-after", "1"),)),
    ):
        async with gateway(ScriptedUpstream([told])) as client:
            got = await client.post(path, json={"model": "m-1", **PATHS[path]})

        assert "x-evil" not in got.headers
        assert got.status_code == told.status if told.status == 200 else got.status_code >= 400
        json.loads(got.content)
