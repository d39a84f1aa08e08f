"""ToolPort over several others: an agent uses the tools of all of them, and doesn't know which is whose.

A part is any installed tool adapter with its own configuration, opened here. It may need the ports for memory
and egress and no others.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ports.adapter import AdapterSpec, Given, find
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId
from ports.messages import Json
from ports.tool import ToolCall, ToolCapabilities, ToolPort, ToolResult, ToolSpec

NEEDS: Final = ("memory", "egress")

_NOBODY: Final = AuthContext(tenant=TenantId("tnt_system"), principal=PrincipalId("svc_worker"))
"""Who asks at the start which names there are."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    adapter: str
    config: dict[str, Json] = {}


class JoinedToolsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]


class JoinedTools:
    """Satisfies `ToolPort`. Where two parts have a tool of the same name, the first part's is the one."""

    def __init__(self, parts: Sequence[ToolPort]) -> None:
        self._parts = tuple(parts)

    @property
    def capabilities(self) -> ToolCapabilities:
        return ToolCapabilities(reconcile=any(part.capabilities.reconcile for part in self._parts))

    async def list_tools(self, auth: AuthContext) -> tuple[ToolSpec, ...]:
        found: dict[str, ToolSpec] = {}
        for part in self._parts:
            for spec in await part.list_tools(auth):
                found.setdefault(spec.name, spec)
        return tuple(found[name] for name in sorted(found))

    async def describe(self, auth: AuthContext, name: str) -> ToolSpec:
        return (await self._owner(auth, name))[1]

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        part, _ = await self._owner(auth, call.name)
        return await part.invoke(auth, call, timeout=timeout)

    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        part, _ = await self._owner(auth, name)
        return await part.reconcile(auth, name, key)

    async def _owner(self, auth: AuthContext, name: str) -> tuple[ToolPort, ToolSpec]:
        for part in self._parts:
            try:
                return part, await part.describe(auth, name)
            except NotFound:
                continue
        names = ", ".join(spec.name for spec in await self.list_tools(auth))
        raise NotFound(f"there is no tool {name[:64]!r}; there are {names or 'none'}")


async def check_names(parts: Sequence[tuple[str, ToolPort]]) -> None:
    """Raise `InvalidArgument` when two parts, each with the name of its adapter, offer a tool of the same name."""
    owners: dict[str, str] = {}
    for adapter, part in parts:
        for spec in await part.list_tools(_NOBODY):
            if spec.name in owners:
                raise InvalidArgument(
                    f"both {owners[spec.name]!r} and {adapter!r} offer a tool {spec.name!r}; give one another name"
                )
            owners[spec.name] = adapter


def _chosen(part: Part) -> tuple[AdapterSpec[Any, Any], Struct]:
    spec = find("tool", part.adapter)
    if beyond := sorted(set(spec.needs) - set(NEEDS)):
        raise InvalidArgument(f"the tool adapter {part.adapter!r} needs {beyond}, and can't be joined with others")
    try:
        return spec, msgspec.convert(part.config, spec.config)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"tool adapter {part.adapter!r}, configuration: {error}") from None


def capabilities_of(config: JoinedToolsConfig) -> ToolCapabilities:
    abilities = [spec.capabilities(own) for spec, own in map(_chosen, config.parts)]
    return ToolCapabilities(reconcile=any(msgspec.structs.asdict(one)["reconcile"] for one in abilities))


@asynccontextmanager
async def open_joined_tools(config: JoinedToolsConfig, given: Given) -> AsyncIterator[ToolPort]:
    async with AsyncExitStack() as closing:
        opened: list[tuple[str, ToolPort]] = []
        for part in config.parts:
            spec, own = _chosen(part)
            ports = {name: given.ports[name] for name in spec.needs}
            its = Given(clock=given.clock, ports=ports, committed_with_runs=given.committed_with_runs)
            opened.append((part.adapter, await closing.enter_async_context(spec.open(own, its))))
        await check_names(opened)
        yield JoinedTools([port for _, port in opened])


SPEC: Final[AdapterSpec[JoinedToolsConfig, ToolPort]] = AdapterSpec(
    config=JoinedToolsConfig, capabilities=capabilities_of, open=open_joined_tools, needs=NEEDS
)
