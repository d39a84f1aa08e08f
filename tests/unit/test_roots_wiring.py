"""Where port names meet adapter names: order, refusals, and closing again."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from msgspec import Struct

from adapters.system_clock import SystemClock
from conformance.people import ACME
from deploy.roots import wiring
from deploy.roots.environment import Environment, resolve
from deploy.roots.wiring import Choice, choices_from, open_ports
from ports.adapter import AdapterSpec, Given, find
from ports.errors import InvalidArgument

pytestmark = [pytest.mark.anyio]


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: int = 1


class Abilities(Struct, frozen=True, kw_only=True):
    fast: bool = False
    size: int = 0


class Adapters:
    """Adapters that write down when they open and close. `needs` by port."""

    def __init__(self, needs: Mapping[str, tuple[str, ...]]) -> None:
        self.needs = needs
        self.log: list[str] = []

    def find(self, port: str, name: str) -> AdapterSpec[Config, Any]:
        def opener(config: Config, given: Given) -> AbstractAsyncContextManager[Any]:
            return self._opened(port, name, config, given)

        return AdapterSpec(
            config=Config,
            capabilities=lambda config: Abilities(size=config.size),
            open=opener,
            needs=self.needs.get(port, ()),
        )

    @asynccontextmanager
    async def _opened(self, port: str, name: str, config: Config, given: Given) -> AsyncIterator[str]:
        self.log.append(f"open {port}")
        if name == "broken":
            raise InvalidArgument("it does not open")
        try:
            yield f"{name}:{port}({config.size}){sorted(given.ports)}"
        finally:
            self.log.append(f"close {port}")


def adapters(monkeypatch: pytest.MonkeyPatch, **needs: tuple[str, ...]) -> Adapters:
    made = Adapters(needs)
    monkeypatch.setattr(wiring, "find", made.find)
    return made


EGRESS = {"tenant": Choice(adapter="inproc"), "egress": Choice(adapter="guarded")}
"""What the built-in tools need besides."""


def chosen(*ports: str, **config: Any) -> dict[str, Choice]:
    return {port: Choice(adapter="x", config=config) for port in ports}


async def test_a_port_opens_after_those_its_adapter_needs_and_closes_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = adapters(monkeypatch, model=("issuer",), issuer=("keys",))

    async with open_ports(chosen("keys", "issuer", "model"), {"model": None}, clock=SystemClock()) as ports:
        assert ports == {"model": "x:model(1)['issuer']"}

    assert made.log == ["open keys", "open issuer", "open model", "close model", "close issuer", "close keys"]


async def test_what_wraps_a_port_is_seen_by_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters(monkeypatch)

    opened = open_ports(chosen("a"), {"a": None}, clock=SystemClock(), wrap=lambda name, port: (name, port))
    async with opened as ports:
        assert ports["a"] == ("a", "x:a(1)[]")


async def test_a_failure_closes_what_was_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapters(monkeypatch, b=("a",))
    choices = {"a": Choice(adapter="x"), "b": Choice(adapter="broken")}

    with pytest.raises(InvalidArgument, match="does not open"):
        async with open_ports(choices, {"b": None}, clock=SystemClock()):
            pytest.fail("it opened")

    assert made.log == ["open a", "open b", "close a"]


@pytest.mark.parametrize(
    ("choices", "needs", "circle", "text"),
    [
        ({}, {"a": None}, {}, "no adapter is chosen for the port 'a'"),
        (chosen("a", sise=2), {"a": None}, {}, "sise"),
        (chosen("a", size="big"), {"a": None}, {}, "size"),
        (chosen("a"), {"a": Abilities(fast=True)}, {}, "lacks ['fast']"),
        (chosen("a", "b"), {"a": None}, {"a": ("b",), "b": ("a",)}, "circle"),
        (chosen("a"), {"a": None}, {"a": ("b",)}, "no adapter is chosen for the port 'b'"),
    ],
    ids=["unchosen", "unknown key", "wrong type", "lacking", "circle", "needed and unchosen"],
)
async def test_what_can_be_refused_is_refused_before_anything_opens(
    monkeypatch: pytest.MonkeyPatch,
    choices: dict[str, Choice],
    needs: dict[str, Struct | None],
    circle: dict[str, tuple[str, ...]],
    text: str,
) -> None:
    made = adapters(monkeypatch, **circle)

    with pytest.raises(InvalidArgument) as refused:
        async with open_ports(choices, needs, clock=SystemClock()):
            pytest.fail("it opened")

    assert text in refused.value.message
    assert made.log == []


@pytest.mark.parametrize(
    ("memory", "effect"),
    [
        (Choice(adapter="inproc", config={"name": "wiring"}), "transactional"),
        (Choice(adapter="inproc", config={"name": "another"}), "idempotent"),
        (Choice(adapter="other", config={"name": "wiring"}), "idempotent"),
    ],
    ids=["one store", "another storage", "another adapter"],
)
async def test_a_tool_is_transactional_only_where_run_store_and_memory_are_one_store(
    monkeypatch: pytest.MonkeyPatch, memory: Choice, effect: str
) -> None:
    monkeypatch.setattr(wiring, "find", lambda port, name: find(port, "inproc" if name == "other" else name))
    choices = {
        "run_state": Choice(adapter="inproc", config={"name": "wiring"}),
        "memory": memory,
        "tool": Choice(adapter="builtin"),
        **EGRESS,
    }

    async with open_ports(choices, {"run_state": None, "tool": None}, clock=SystemClock()) as ports:
        put = await ports["tool"].describe(ACME, "memory_put")

    assert put.effect == effect


async def test_tools_joined_with_others_are_transactional_where_they_are_alone() -> None:
    one_store = Choice(adapter="inproc", config={"name": "wiring"})
    joined = Choice(adapter="joined", config={"parts": [{"adapter": "builtin"}]})
    choices = {"run_state": one_store, "memory": one_store, "tool": joined, **EGRESS}

    async with open_ports(choices, {"run_state": None, "tool": None}, clock=SystemClock()) as ports:
        put = await ports["tool"].describe(ACME, "memory_put")

    assert put.effect == "transactional"


async def test_without_a_run_store_no_tool_is_transactional() -> None:
    choices = {"memory": Choice(adapter="inproc"), **EGRESS, "tool": Choice(adapter="builtin")}

    async with open_ports(choices, {"tool": None}, clock=SystemClock()) as ports:
        put = await ports["tool"].describe(ACME, "memory_put")

    assert put.effect == "idempotent"


async def test_choices_replace_the_defaults_by_port() -> None:
    defaults = chosen("queue", "event")

    assert choices_from(None, defaults) == defaults
    replaced = choices_from('{"queue": {"adapter": "inproc", "config": {"name": "n"}}}', defaults)
    assert replaced == {**defaults, "queue": Choice(adapter="inproc", config={"name": "n"})}


@pytest.mark.parametrize("text", ["[]", '{"queue": "inproc"}', '{"quue": {"adapter": "inproc"}}', "nonsense"])
async def test_choices_that_can_not_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        choices_from(text, chosen("queue"))


async def test_variables_are_read_with_their_names_in_the_refusal(tmp_path: Any) -> None:
    secret = tmp_path / "dsn"
    secret.write_text("postgresql://x\n")
    env = Environment({"AGENTOS_PORT": "80a", "AGENTOS_MODE": "demo", "AGENTOS_DSN_FILE": str(secret), "KEY": "k"})

    assert env.mode() == "demo"
    assert env.secret_file("DSN_FILE") == "postgresql://x"
    assert resolve("env:KEY", env.variables) == "k"
    assert env.number("OTHER", 7) == 7
    for fail in (lambda: env.number("PORT", 1), lambda: env.required("ISSUER"), lambda: env.secret_file("NONE_FILE")):
        with pytest.raises(InvalidArgument, match="AGENTOS_"):
            fail()
    for reference in ("plain-secret", "env:NOBODY", "file:/nowhere/at/all", "env:", "vault:x"):
        with pytest.raises(InvalidArgument) as refused:
            resolve(reference, env.variables)
        assert "plain-secret" not in refused.value.message
