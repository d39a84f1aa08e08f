"""Where port names meet adapter names: opens the chosen adapters in the order they need each other.

    async with open_ports(choices, needs, clock=clock) as ports:   # {"run_state": …, "queue": …}

The only `Any`s of a composition root live here; from its dependencies Struct inwards everything is typed.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from ports.adapter import AdapterSpec, Given, find
from ports.capabilities import missing
from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.messages import Json
from ports.run_state import RunStateCapabilities

Wrap: TypeAlias = Callable[[str, Any], Any]
"""(port name, port) → the port as its users shall see it: instrumentation goes here."""


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which adapter serves a port, and its own table of the configuration."""

    adapter: str
    config: dict[str, Json] = {}


def unwrapped(_: str, port: Any) -> Any:
    return port


def choices_from(text: str | None, defaults: Mapping[str, Choice]) -> dict[str, Choice]:
    """`defaults`, with what the JSON object in `text` (`{"queue": {"adapter": "inproc"}}`) says instead.

    Raises:
        InvalidArgument: not such an object, or a port that isn't among `defaults`.
    """
    if not text:
        return dict(defaults)
    try:
        chosen = msgspec.json.decode(text, type=dict[str, Choice])
    except msgspec.DecodeError as error:
        raise InvalidArgument(
            f'the choice of adapters is not usable: {error}; write {{"<port>": {{"adapter": "<name>"}}}}'
        ) from None
    if unknown := sorted(chosen.keys() - defaults.keys()):
        raise InvalidArgument(f"this service has no port {unknown}; it has {sorted(defaults)}")
    return {**defaults, **chosen}


@asynccontextmanager
async def open_ports(
    choices: Mapping[str, Choice],
    needs: Mapping[str, Struct | None],
    *,
    clock: Clock,
    wrap: Wrap = unwrapped,
) -> AsyncIterator[dict[str, Any]]:
    """Open each port of `needs`, and those that their adapters need in turn; close them in reverse, also on failure.

    A need is the capabilities a port must have, or None when the clauses every adapter keeps are enough. Everything
    that can be refused without touching a network is refused before the first adapter opens.

    Raises:
        InvalidArgument: no choice for a port, no such adapter, a configuration it refuses, a lacking ability, or adapters
            that need each other in a circle.
    """
    plan = _plan(choices, needs)
    committed = _committed_with_runs(choices, plan)
    opened: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        for port, (spec, config) in plan.items():
            ports = {name: opened[name] for name in spec.needs}
            given = Given(clock=clock, ports=ports, committed_with_runs=committed)
            opened[port] = wrap(port, await stack.enter_async_context(spec.open(config, given)))
        yield {port: opened[port] for port in needs}


def _plan(
    choices: Mapping[str, Choice], needs: Mapping[str, Struct | None]
) -> dict[str, tuple[AdapterSpec[Any, Any], Struct]]:
    """What to open, in order: each port after those its adapter needs."""
    specs: dict[str, tuple[AdapterSpec[Any, Any], Struct]] = {}
    waiting = list(needs)
    while waiting:
        port = waiting.pop()
        if port not in specs:
            specs[port] = _chosen(port, choices, needs.get(port))
            waiting += specs[port][0].needs
    try:
        order = TopologicalSorter({port: spec.needs for port, (spec, _) in specs.items()}).static_order()
        return {port: specs[port] for port in order}
    except CycleError as error:
        raise InvalidArgument(f"adapters need each other in a circle: {' → '.join(error.args[1])}") from None


def _committed_with_runs(
    choices: Mapping[str, Choice], plan: Mapping[str, tuple[AdapterSpec[Any, Any], Struct]]
) -> frozenset[str]:
    """The ports whose changes the run store commits with a step's result: Memory, where both are one store.

    That is where adapter and configuration are equal. What only might be one store is not: a write would be lost.
    """
    if "run_state" not in plan or "memory" not in plan:
        return frozenset()
    spec, config = plan["run_state"]
    abilities = spec.capabilities(config)
    able = isinstance(abilities, RunStateCapabilities) and abilities.transactional
    one_store = choices["memory"].adapter == choices["run_state"].adapter and plan["memory"][1] == config
    return frozenset({"memory"}) if able and one_store else frozenset()


def _chosen(port: str, choices: Mapping[str, Choice], need: Struct | None) -> tuple[AdapterSpec[Any, Any], Struct]:
    choice = choices.get(port)
    if choice is None:
        raise InvalidArgument(f"no adapter is chosen for the port {port!r}; name one in the configuration")
    spec = find(port, choice.adapter)
    try:
        config: Struct = msgspec.convert(choice.config, spec.config)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{port} adapter {choice.adapter!r}, configuration: {error}") from None
    if need is not None and (lacking := missing(need, spec.capabilities(config))):
        raise InvalidArgument(f"{port} adapter {choice.adapter!r} lacks {lacking}; choose another adapter")
    return spec, config
