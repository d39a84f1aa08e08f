"""The gateway's configuration changed on a real node: under load, by command, by API, and from a file to the store."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from msgspec import Struct

from deploy.cli.gateway_check import OPERATOR
from deploy.internal import open_gateway_configurations
from ports.gateway_configuration import Draft
from stack_b.http.admin import CURRENT
from tests.support.dripping_backend import MODEL, WORDS, DrippingBackend
from tests.support.http_server import served
from tests.support.node import NodeUnderTest, running_node

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

STREAMS: Final = 200
VERSIONS: Final = 20
PACE_S: Final = 0.5
FOLLOWED_S: Final = 5.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeUnderTest]:
    with running_node(tmp_path_factory.mktemp("reconfigured") / "home") as node:
        yield node


class Backends(Struct, frozen=True):
    left: str
    right: str
    dripping: tuple[DrippingBackend, DrippingBackend]

    def document(self, first: str, number: int = 0) -> dict[str, Any]:
        """Both serve the model; `first` is asked first. With another `number` both are opened anew."""
        urls = {"left": self.left, "right": self.right}
        names = [first, *(name for name in urls if name != first)]
        backends = [
            {"name": name, "base_url": f"{urls[name]}/v1", "models": [{"id": MODEL}], "timeout_s": 300 + number}
            for name in names
        ]
        return {"backends": backends, "routing": {"aliases": {"any": MODEL}}}


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    left, right = (DrippingBackend(pace=PACE_S) for _ in range(2))
    async with AsyncExitStack() as stack:
        at_left = await stack.enter_async_context(served(left))
        at_right = await stack.enter_async_context(served(right))
        yield Backends(at_left, at_right, (left, right))


class Admin:
    """The admin API as its client has it."""

    def __init__(self, node: NodeUnderTest, http: httpx.AsyncClient) -> None:
        said = node.command("token", "--audience", "admin", "--role", "platform_admin")
        assert said.returncode == 0, said.stderr
        self._headers = {"authorization": f"Bearer {said.stdout.strip()}"}
        self._url = node.admin + CURRENT
        self._http = http

    async def put(self, document: Any) -> httpx.Response:
        headers = {**self._headers, "if-match": "*", "idempotency-key": uuid.uuid4().hex}
        return await self._http.put(self._url, json={"document": document}, headers=headers)


class Caller:
    """The gateway as its clients have it."""

    def __init__(self, node: NodeUnderTest, http: httpx.AsyncClient) -> None:
        self._headers = {"authorization": f"Bearer {node.app_key()}"}
        self._url = f"{node.stack_b}/v1/chat/completions"
        self._ready = f"{node.stack_b}/readyz"
        self._http = http

    async def chat(self) -> httpx.Response:
        return await self._http.post(self._url, json=self._body(), headers=self._headers)

    async def stream(self) -> tuple[int, str, bool]:
        """Status, text, and whether it came to its end."""
        body = {**self._body(), "stream": True}
        async with self._http.stream("POST", self._url, json=body, headers=self._headers) as answer:
            events = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
        choices = [choice for event in events[:-1] for choice in json.loads(event.removeprefix("data: "))["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return answer.status_code, text, events[-1:] == ["data: [DONE]"]

    async def standing(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self._http.get(self._ready)).json()["configuration"]
        return found

    async def served_by(self) -> str:
        """By name; empty while the model is not known."""
        answer = await self.chat()
        return str(answer.json()["route"]["backend"]) if answer.status_code == 200 else ""

    @staticmethod
    def _body() -> dict[str, Any]:
        return {"model": "any", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


async def until_served_by(caller: Caller, name: str) -> float:
    began = time.monotonic()
    with anyio.fail_after(30):
        while await caller.served_by() != name:  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.1)
    return time.monotonic() - began


async def unusable(node: NodeUnderTest) -> None:
    """A version that no API would store: of another release, say."""
    async with open_gateway_configurations(node.node) as store:
        draft = Draft(document={"backends": [{"name": "x", "base_url": "ftp://x"}]}, digest="unusable")
        await store.put(OPERATOR, draft, if_match=None, key=uuid.uuid4().hex)


async def test_twenty_versions_some_unusable_drop_nothing_of_what_is_under_way(
    node: NodeUnderTest, backends: Backends
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=120, limits=limits) as http:
        caller, admin = Caller(node, http), Admin(node, http)
        assert (await admin.put(backends.document("left"))).status_code == 200
        await until_served_by(caller, "left")
        streams = [asyncio.create_task(caller.stream()) for _ in range(STREAMS)]
        statuses: list[int] = []
        done = asyncio.Event()

        async def call() -> None:
            while not done.is_set():
                statuses.append((await caller.chat()).status_code)

        async with anyio.create_task_group() as group:
            with anyio.fail_after(60):
                while backends.dripping[0].open < STREAMS:  # noqa: ASYNC110 - the backend counts, and sets no event
                    await anyio.sleep(0.05)
            group.start_soon(call)
            for number in range(VERSIONS):
                if number % 4 == 3:
                    await unusable(node)
                else:
                    answer = await admin.put(backends.document("right" if number % 2 else "left", number))
                    assert answer.status_code == 200, answer.text
                await anyio.sleep(PACE_S / 2)
            assert (await admin.put(backends.document("right"))).status_code == 200
            took = await until_served_by(caller, "right")
            standing = await caller.standing()
            done.set()
        under_way = sum(not stream.done() for stream in streams)
        for one in backends.dripping:
            one.finish.set()
        ended = await asyncio.gather(*streams)

    assert under_way == STREAMS
    assert {(status, whole) for status, _, whole in ended} == {(200, True)}
    assert sum(text.count(WORDS) for _, text, _ in ended) == sum(one.sent for one in backends.dripping)
    assert "".join(text for _, text, _ in ended).replace(WORDS, "") == ""
    assert len(statuses) > VERSIONS
    assert set(statuses) == {200}
    assert took < FOLLOWED_S
    assert (standing["source"], standing["refused"]) == ("store", False)


async def test_an_operator_applies_looks_and_goes_back(node: NodeUnderTest, backends: Backends, tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"

    async def agentos(*words: str, code: int = 0) -> Any:
        done = await anyio.to_thread.run_sync(lambda: node.command("gateway", *words, "--json"))
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    file.write_text(json.dumps(backends.document("left")))
    tried = await agentos("apply", str(file), "--dry-run")
    applied = await agentos("apply", str(file), "--comment", "left first")
    file.write_text(json.dumps(backends.document("right")))
    changed = await agentos("apply", str(file))
    first, second = applied["stored"]["version"], changed["stored"]["version"]
    back = await agentos("rollback", str(first), "--comment", "right was slow")
    file.write_text('{"backends": [{"name": "a", "base_url": "http://a", "api_key": "sk-canary"}]}')
    refused = await agentos("apply", str(file), code=1)
    history = (await agentos("history", "--limit", "3"))["versions"]
    shown = await agentos("show")

    assert (tried["usable"], tried["current"]) == (True, first - 1)
    assert [one["in_force"] for one in (applied, changed, back)] == [True] * 3
    assert (second, back["stored"]["version"], back["stored"]["restores"]) == (first + 1, first + 2, first)
    assert [one["code"] for one in refused["diagnostics"]] == ["secret_in_plain"]
    assert "sk-canary" not in json.dumps(refused["diagnostics"])
    assert [one["comment"] for one in history] == ["right was slow", "", "left first"]
    assert shown["stored"]["document"] == backends.document("left")
    assert shown["gateway"]["version"] == first + 2


async def test_a_version_that_the_gateway_refuses_is_named_by_validate_and_show(node: NodeUnderTest) -> None:
    await unusable(node)
    async with httpx.AsyncClient(trust_env=False) as http:
        caller = Caller(node, http)
        with anyio.fail_after(20):
            while not (await caller.standing())["refused"]:  # noqa: ASYNC110 - another process sets no event of ours
                await anyio.sleep(0.2)
        ready = await http.get(f"{node.stack_b}/readyz")

    validated = await anyio.to_thread.run_sync(lambda: node.command("validate"))
    checked = await anyio.to_thread.run_sync(lambda: node.command("gateway", "check"))
    shown = await anyio.to_thread.run_sync(lambda: node.command("gateway", "show"))

    assert ready.status_code == 200
    assert (validated.returncode, "can't use its newest configuration" in validated.stderr) == (1, True)
    assert (checked.returncode, "$.backends[0]" in checked.stderr) == (1, True)
    assert "because it can't use version" in shown.stderr


async def test_a_file_goes_before_the_store_and_everybody_says_so(node: NodeUnderTest, tmp_path: Path) -> None:
    file, settings = tmp_path / "gateway.json", node.node.env_file.read_text()
    file.write_text('{"routing": {"aliases": {"from-a-file": "agentos-demo"}}}')
    node.node.env_file.write_text(settings + f"\nAGENTOS_GATEWAY_FILE={file}\n")
    up = await anyio.to_thread.run_sync(lambda: node.agentos("up"))
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            standing = await Caller(node, http).standing()
            put = await Admin(node, http).put({})
        applied = await anyio.to_thread.run_sync(lambda: node.command("gateway", "apply", str(file)))
    finally:
        node.node.env_file.write_text(settings)
        back = await anyio.to_thread.run_sync(lambda: node.agentos("up"))

    assert (up.returncode, back.returncode) == (0, 0), up.stderr + back.stderr
    assert (standing["source"], standing["version"], standing["refused"]) == ("file", 0, False)
    assert str(file) in put.json()["overridden_by"]
    assert "NOT in force" in applied.stderr
