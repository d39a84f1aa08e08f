"""The gateway's file: what it says is in force, what it turns into is followed, and what can't be used changes nothing."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.system_clock import SystemClock
from conformance.people import ACME
from observability.metrics import Metrics
from ports.context import PolicyContext
from ports.errors import InvalidArgument
from ports.tenant import Entitlements, Tenant
from stack_b.backends.catalog import Catalog
from stack_b.backends.opened import OpenedBackends
from stack_b.backends.protocol import Backend
from stack_b.backends.settings import BackendSettings
from stack_b.budget.prices import Prices
from stack_b.configuration import MAX_FILE_BYTES, parse_configuration, read_configuration
from stack_b.following import Applied, FileSource, Following, Found, Standing, first
from stack_b.policies.desk import Policies
from stack_b.routing.router import Asked, Router
from tests.support.http_server import served
from tests.support.scripted_upstream import Events, ScriptedUpstream, delta
from tests.support.stack_b import stack_b

pytestmark = [pytest.mark.anyio]

TENANT = Tenant(
    id=ACME.tenant, name="", status="active", entitlements=Entitlements(), created_at=datetime(2026, 1, 1, tzinfo=UTC)
)
LINGERING = timedelta(milliseconds=50)


class Node(Struct, frozen=True):
    path: Path
    catalog: Catalog
    router: Router
    opened: OpenedBackends
    policies: Policies
    following: Following

    def write(self, **members: Any) -> None:
        # As an editor does: another file in its place.
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(members))
        new.replace(self.path)

    def names(self) -> dict[str, list[str]]:
        asked = {"fast", "m-1", "m-2"}
        return {
            name: [
                one.backend.name for one in self.router.candidates(ACME, Asked(name=name, kind="chat"), Entitlements())
            ]
            for name in sorted(asked)
        }


def backend(name: str, model: str, url: str = "http://127.0.0.1:1/v1") -> dict[str, Any]:
    return {"name": name, "base_url": url, "models": [{"id": model}]}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps({"backends": [backend("one", "m-1")], "routing": {"aliases": {"fast": "m-1"}}}))
    clock = SystemClock()
    async with OpenedBackends(clock, secret=lambda _: "", demo=False, lingering=LINGERING) as opened:
        following, to = await followed(path, opened)
        await to.catalog.refresh()
        yield Node(path, to.catalog, to.router, opened, to.policies, following)


async def followed(path: Path, opened: OpenedBackends) -> tuple[Following, Applied]:
    """What follows the file, and what it is applied to."""

    async def usable(found: Found) -> tuple[Backend, ...]:
        return opened.use(found.configuration.backends)

    source, clock = FileSource(path), SystemClock()
    found, backends, _ = await first(source, usable)
    catalog = Catalog(backends, clock)
    to = Applied(
        catalog=catalog,
        router=Router(catalog, found.configuration.routing, clock),
        policies=Policies(),
        opened=opened,
        prices=Prices(found.configuration.prices),
        settings=settings_of,
    )
    return Following(source, found, to, standing=Standing(), clock=clock, metrics=Metrics()), to


def settings_of(found: Found) -> tuple[BackendSettings, ...]:
    return found.configuration.backends


async def test_what_the_file_turns_into_is_in_force(node: Node) -> None:
    before, version = node.names(), node.following.standing.digest
    node.write(backends=[backend("one", "m-1"), backend("two", "m-2")], routing={"aliases": {"fast": "m-2"}})

    await node.following.look()

    assert before == {"fast": ["one"], "m-1": ["one"], "m-2": []}
    assert node.names() == {"fast": ["two"], "m-1": ["one"], "m-2": ["two"]}
    assert node.following.standing.digest != version


async def test_policies_and_what_backends_may_see_are_followed(node: Node) -> None:
    rule = {"id": "no", "effect": "deny"}
    secret = replace(ACME, policy=PolicyContext(classification="secret"))
    asked = Asked(name="m-1", kind="chat")
    before = (node.policies.of(TENANT).is_empty, node.router.candidates(secret, asked, Entitlements()))
    node.write(
        backends=[{**backend("one", "m-1"), "classifications": ["secret"]}], policies={"house": {"rules": [rule]}}
    )

    await node.following.look()

    assert before == (True, ())
    assert not node.policies.of(TENANT).is_empty
    assert len(node.router.candidates(secret, asked, Entitlements())) == 1
    assert node.router.candidates(ACME, asked, Entitlements()) == ()

    node.write(backends=[backend("one", "m-1")], policies={"house": {"rules": [{**rule, "patterns": ["("]}]}})
    await node.following.look()

    assert not node.policies.of(TENANT).is_empty, "what can't be used takes nothing away"


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": {"house": {"rules": [{"id": "no", "effect": "deny", "patterns": ["("]}]}}},
        {"policies": {"tenant": {"rules": []}}},
        {"backends": [backend("one", "m-1"), backend("one", "m-2")]},
        {"backends": [{"name": "one", "base_url": "ftp://x"}]},
        {"backends": [{"name": "demo", "kind": "demo"}]},
        {"routing": {"aliases": {"a": "b", "b": "c"}}},
        {"rooting": {}},
    ],
)
async def test_what_can_not_be_used_changes_nothing_and_is_told(
    node: Node, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    before, version = node.names(), node.following.standing.digest
    node.write(**wrong)

    with caplog.at_level(logging.ERROR):
        await node.following.look()
        await node.following.look()

    assert (node.names(), node.following.standing.digest) == (before, version)
    assert [record.message for record in caplog.records] == ["gateway.configuration_refused"]

    node.write(backends=[backend("two", "m-2")])
    await node.following.look()
    assert node.names() == {"fast": [], "m-1": [], "m-2": ["two"]}


async def test_a_file_that_is_gone_or_half_written_changes_nothing(node: Node) -> None:
    before = node.names()

    node.path.write_text('{"backends": [')
    await node.following.look()
    node.path.unlink()
    await node.following.look()

    assert node.names() == before


async def test_a_backend_about_which_nothing_changed_stays_the_same_one(node: Node) -> None:
    [one] = [found.backend for found in node.catalog.served()]
    node.write(backends=[backend("two", "m-2"), backend("one", "m-1")])

    await node.following.look()

    assert one in [found.backend for found in node.catalog.served()]


async def test_a_stream_that_has_begun_goes_on_under_what_it_began_with() -> None:
    """Its backend leaves while it streams, and is closed when no request can need it any more."""
    upstream = ScriptedUpstream([Events([delta(content="first"), delta("stop", content=" second")], hold_after=1)])
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(upstream))
        settings = parse_configuration(json.dumps({"backends": [backend("one", "m-1", f"{url}/v1")]})).backends
        lingering = timedelta(minutes=1)
        opened = await stack.enter_async_context(
            OpenedBackends(clock, secret=lambda _: "", demo=False, lingering=lingering)
        )
        gateway = await stack.enter_async_context(stack_b(*opened.use(settings)))
        body = {"model": "m-1", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        request = gateway.http.build_request(
            "POST", "/v1/chat/completions", json=body, headers={"authorization": "Bearer acme"}
        )
        with anyio.fail_after(20):
            sending = asyncio.create_task(gateway.http.send(request))
            await upstream.held.wait()
            await gateway.deps.catalog.follow(opened.use(()))
            refused = await gateway.chat(model="m-1")
            upstream.resume.set()
            answer = await sending

    assert refused.json()["error"]["code"] == "model_not_entitled"
    assert "second" in answer.text
    assert answer.text.rstrip().endswith("[DONE]")


def test_a_version_is_of_what_is_meant_not_of_how_it_is_written() -> None:
    one = parse_configuration('{"routing": {"aliases": {"a": "m", "b": "m"}}, "backends": []}')
    other = parse_configuration('{"routing":{"aliases":{"b":"m","a":"m"}}}')

    assert one.version == other.version
    assert one.version != parse_configuration("{}").version


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    path.write_text(" " * MAX_FILE_BYTES + "{}")

    with pytest.raises(InvalidArgument, match="is small"):
        read_configuration(path)


async def test_a_secret_that_is_rotated_is_followed_although_the_file_stays(tmp_path: Path) -> None:
    key, path = tmp_path / "key", tmp_path / "gateway.json"
    key.write_text("old")
    path.write_text(json.dumps({"backends": [{**backend("one", "m-1"), "api_key": f"file:{key}"}]}))
    clock = SystemClock()

    def secret(reference: str) -> str:
        return Path(reference.removeprefix("file:")).read_text()

    async with OpenedBackends(clock, secret=secret, demo=False, lingering=LINGERING) as opened:
        following, to = await followed(path, opened)
        await following.look()
        before = to.catalog.backends
        key.write_text("another")
        await following.look()

        assert before != to.catalog.backends
