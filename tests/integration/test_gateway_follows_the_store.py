"""Stored versions of the gateway's configuration: the newest that can be used is in force, and what was refused is told."""

import logging
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc import store as storage
from adapters.inproc.gateway_configuration import InprocGatewayConfigurations
from adapters.system_clock import SystemClock
from conformance.clock import ManualClock
from conformance.people import PLATFORM
from observability.metrics import Metrics
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import InvalidArgument, Unavailable
from ports.gateway_configuration import Draft, Version
from stack_b.backends.catalog import Catalog
from stack_b.backends.opened import OpenedBackends
from stack_b.backends.protocol import Backend
from stack_b.backends.settings import BackendSettings
from stack_b.budget.prices import Prices
from stack_b.following import LOOK_EVERY, Applied, Following, Found, Standing, StoreSource, first
from stack_b.policies.desk import Policies
from stack_b.routing.router import Router
from tests.integration.test_gateway_configuration import LINGERING, backend

pytestmark = [pytest.mark.anyio]

BROKEN: dict[str, Any] = {"backends": [{"name": "one", "base_url": "ftp://x"}]}


class Deaf(InprocGatewayConfigurations):
    """A store that does not answer while it is `away`."""

    away = False
    broken = False

    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None:
        if self.broken:
            raise ZeroDivisionError
        if self.away:
            raise Unavailable("away")
        return await super().current(auth, newer_than=newer_than)


class Gateway(Struct, frozen=True):
    following: Following
    to: Applied
    metrics: Metrics

    @property
    def backends(self) -> list[str]:
        return [one.name for one in self.to.catalog.backends]

    @property
    def standing(self) -> Standing:
        return self.following.standing

    def gauges(self) -> tuple[str, str]:
        lines = dict(line.rsplit(" ", 1) for line in self.metrics.render().decode().splitlines() if line[0] != "#")
        return tuple(lines[f"agentos_gateway_configuration_{name}"] for name in ("version", "refused"))  # type: ignore[return-value]  # two


@pytest.fixture
async def store() -> AsyncIterator[Deaf]:
    name = uuid.uuid4().hex
    try:
        yield Deaf(storage.store(name), SystemClock())
    finally:
        storage.drop(name)


@pytest.fixture
async def opened() -> AsyncIterator[OpenedBackends]:
    def secret(reference: str) -> str:
        path = Path(reference.removeprefix("file:"))
        if not path.exists():
            raise InvalidArgument("there is no secret")
        return path.read_text()

    async with OpenedBackends(SystemClock(), secret=secret, demo=False, lingering=LINGERING) as made:
        yield made


async def put(store: Deaf, document: Any) -> int:
    draft = Draft(document=document, digest="d")
    return (await store.put(PLATFORM, draft, if_match=None, key=uuid.uuid4().hex)).version


def settings(found: Found) -> tuple[BackendSettings, ...]:
    return found.configuration.backends


async def started(store: Deaf, opened: OpenedBackends, clock: Clock | None = None) -> Gateway:
    async def usable(found: Found) -> tuple[Backend, ...]:
        return opened.use(settings(found))

    source, clock, metrics = StoreSource(store), clock or SystemClock(), Metrics()
    found, backends, refused = await first(source, usable)
    catalog = Catalog(backends, clock)
    to = Applied(
        catalog=catalog,
        router=Router(catalog, found.configuration.routing, clock),
        policies=Policies(),
        opened=opened,
        prices=Prices(found.configuration.prices),
        settings=settings,
    )
    following = Following(source, found, to, standing=Standing(), clock=clock, metrics=metrics, refused=refused)
    return Gateway(following, to, metrics)


async def test_without_a_version_there_is_nothing_and_each_new_one_is_taken(
    store: Deaf, opened: OpenedBackends
) -> None:
    gateway = await started(store, opened)
    at_first = (gateway.backends, gateway.standing.version)

    await put(store, {"backends": [backend("one", "m-1")]})
    await gateway.following.look()
    await put(store, {"backends": [backend("two", "m-2")]})
    await put(store, {"backends": [backend("three", "m-3")]})
    await gateway.following.look()

    assert at_first == ([], 0)
    assert (gateway.backends, gateway.standing.version, gateway.standing.origin) == (["three"], 3, "store")
    assert gateway.gauges() == ("3.0", "0.0")


async def test_a_version_that_can_not_be_used_leaves_the_one_before_in_force_and_is_told_once(
    store: Deaf, opened: OpenedBackends, caplog: pytest.LogCaptureFixture
) -> None:
    await put(store, {"backends": [backend("one", "m-1")]})
    gateway = await started(store, opened)

    await put(store, BROKEN)
    with caplog.at_level(logging.ERROR):
        await gateway.following.look()
        await gateway.following.look()

    assert gateway.backends == ["one"]
    assert (gateway.standing.version, gateway.standing.refused, gateway.standing.refused_version) == (1, True, 2)
    assert gateway.gauges() == ("1.0", "1.0")
    assert warnings_in(caplog) == ["gateway.configuration_refused"]
    await put(store, {"backends": [backend("two", "m-2")]})
    await gateway.following.look()
    assert (gateway.backends, gateway.standing.refused, gateway.gauges()) == (["two"], False, ("3.0", "0.0"))


async def test_a_gateway_that_starts_begins_with_the_newest_version_that_it_can_use(
    store: Deaf, opened: OpenedBackends
) -> None:
    await put(store, {"backends": [backend("one", "m-1")]})
    await put(store, BROKEN)
    await put(store, {"of": "another release"})

    gateway = await started(store, opened)
    await gateway.following.look()

    assert gateway.backends == ["one"]
    assert (gateway.standing.version, gateway.standing.refused_version) == (1, 3)


async def test_a_gateway_that_can_use_none_of_the_versions_does_not_start(store: Deaf, opened: OpenedBackends) -> None:
    await put(store, BROKEN)

    with pytest.raises(InvalidArgument, match="AGENTOS_GATEWAY_FILE"):
        await started(store, opened)


async def test_a_version_whose_secret_comes_later_is_taken_then(
    store: Deaf, opened: OpenedBackends, tmp_path: Path
) -> None:
    await put(store, {"backends": [backend("one", "m-1")]})
    await put(store, {"backends": [{**backend("two", "m-2"), "api_key": f"file:{tmp_path / 'key'}"}]})
    gateway = await started(store, opened)
    await gateway.following.look()
    before = gateway.backends

    (tmp_path / "key").write_text("sk")
    await gateway.following.look()

    assert (before, gateway.backends, gateway.standing.refused) == (["one"], ["two"], False)


async def test_what_is_in_force_has_its_secret_followed_while_a_newer_version_is_refused(
    store: Deaf, opened: OpenedBackends, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("old")
    await put(store, {"backends": [{**backend("one", "m-1"), "api_key": f"file:{key}"}]})
    gateway = await started(store, opened)
    await put(store, {"backends": [{**backend("two", "m-2"), "api_key": f"file:{tmp_path / 'absent'}"}]})
    await gateway.following.look()
    [before] = gateway.to.catalog.backends

    key.write_text("another")
    await gateway.following.look()

    [after] = gateway.to.catalog.backends
    assert (before.name, after.name, after is before) == ("one", "one", False)
    assert (gateway.standing.version, gateway.standing.refused_version) == (1, 2)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Whatever another test has set loggers to."""
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_store_that_does_not_answer_changes_nothing_and_is_told_once(
    store: Deaf, opened: OpenedBackends, caplog: pytest.LogCaptureFixture
) -> None:
    await put(store, {"backends": [backend("one", "m-1")]})
    gateway = await started(store, opened)
    await put(store, {"backends": [backend("two", "m-2")]})

    store.away = True
    with caplog.at_level(logging.WARNING):
        await gateway.following.look()
        await gateway.following.look()
    meanwhile = (gateway.backends, gateway.standing.reachable)
    store.away = False
    await gateway.following.look()

    assert meanwhile == (["one"], False)
    assert warnings_in(caplog) == ["gateway.configuration_unreachable"]
    assert (gateway.backends, gateway.standing.reachable) == (["two"], True)


async def test_a_bug_in_one_look_is_not_the_last_look(
    store: Deaf, opened: OpenedBackends, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    gateway = await started(store, opened, clock)
    await put(store, {"backends": [backend("one", "m-1")]})
    store.broken = True

    async with anyio.create_task_group() as group:
        group.start_soon(gateway.following.follow)
        await anyio.wait_all_tasks_blocked()
        await clock.advance(LOOK_EVERY)
        await anyio.wait_all_tasks_blocked()
        store.broken = False
        await clock.advance(LOOK_EVERY)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert warnings_in(caplog) == ["gateway.following_failed"]
    assert gateway.backends == ["one"]


async def test_prices_are_followed_too(store: Deaf, opened: OpenedBackends) -> None:
    now = datetime.now(UTC)
    price = {"model": "m-1", "valid_from": "2026-01-01T00:00:00Z", "prompt": "1"}
    await put(store, {"prices": [price]})
    gateway = await started(store, opened)
    before = gateway.to.prices.of("m-1", now)

    await put(store, {"prices": [{**price, "prompt": "2"}]})
    await gateway.following.look()

    after = gateway.to.prices.of("m-1", now)
    assert before is not None
    assert after == replace(before, prompt=2_000_000_000)
