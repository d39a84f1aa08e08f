"""How an adapter is found and opened.

A package exports one `AdapterSpec` per port under the entry-point group `agentos.adapters.<port>`. Ours register in the
same way, so the outsider's path is walked every day. Only the chosen adapter's module is imported.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from ports.clock import Clock
from ports.errors import InvalidArgument

ENTRY_POINT_PREFIX: Final = "agentos.adapters."

ConfigT = TypeVar("ConfigT", bound=Struct)
PortT_co = TypeVar("PortT_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the composition root hands an adapter besides its configuration."""

    clock: Clock
    ports: Mapping[str, Any] = field(default_factory=dict)
    """The ports the spec names in `needs`, already open. They outlive the adapter."""
    committed_with_runs: frozenset[str] = frozenset()
    """Ports whose changes the run store can commit together with a step's result. A tool that changes nothing else may be
    `transactional`; every other tool acts by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec(Generic[ConfigT, PortT_co]):
    """What a package exports under an `agentos.adapters.<port>` entry point."""

    config: type[ConfigT]
    """Decoded from the adapter's own table of the configuration; unknown keys are refused (declare the Struct with
    `forbid_unknown_fields=True`)."""

    capabilities: Callable[[ConfigT], Struct]
    """What an adapter configured like this will be able to do. Pure: validation calls it without touching a network."""

    open: Callable[[ConfigT, Given], AbstractAsyncContextManager[PortT_co]]
    """Connect, yield the port, disconnect."""

    needs: tuple[str, ...] = ()
    """Names of other ports this adapter calls; `Given.ports` holds exactly these."""


@cache
def _installed() -> Callable[..., EntryPoints]:
    """Chooses from the entry points of every distribution, which are read once: a process asks for a dozen ports."""
    return entry_points().select


def available(port: str) -> list[str]:
    """Names of the installed adapters for `port`, sorted; imports none of them."""
    return sorted(point.name for point in _installed()(group=ENTRY_POINT_PREFIX + port))


def find(port: str, name: str) -> AdapterSpec[Any, Any]:
    """Import and return the adapter `name` for `port`.

    Raises:
        InvalidArgument: no such adapter is installed, or its entry point does not hold an `AdapterSpec`.
    """
    for point in _installed()(group=ENTRY_POINT_PREFIX + port):
        if point.name == name:
            spec = point.load()
            if not isinstance(spec, AdapterSpec):
                raise InvalidArgument(f"{port} adapter {name!r}: {point.value} is not an AdapterSpec")
            return spec
    raise InvalidArgument(f"no {port} adapter {name!r} is installed; there are {available(port)}")
