"""The operator's way in: the ports behind the services, opened from the command line.

For what the public API has no door to (tenants, keys, publishing an agent). The identity is the operator's: whoever can
read this node's secrets directory.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, cast

from msgspec import Struct

from adapters.postgres.tenant_export import Export, Open, Tell, as_it_is, export_subject, export_tenant, nobody
from adapters.system_clock import SystemClock
from deploy import credentials
from deploy.administration.offboarding import export_path
from deploy.administration.platform import Platform
from deploy.administration.privacy import subject_export_path
from deploy.config import Config
from deploy.home_files import control_url_file, homes_set_up
from deploy.node import Node
from deploy.roots.databases import homes_in
from deploy.roots.tools import egress_of_a_node, tools_of_a_node
from deploy.roots.wiring import Choice, choices_from, open_ports
from ports.agent import AgentRegistry
from ports.audit import AuditLog
from ports.auth import TokenIssuer
from ports.context import SCOPES, AuthContext
from ports.errors import Unavailable
from ports.gateway_configuration import GatewayConfigurations
from ports.ids import PrincipalId, TenantId
from ports.messages import Json
from ports.request_log import RequestLog
from ports.run_state import RunStatePort
from ports.tenant import TenantDirectory
from ports.tool import ToolPort

OPERATOR: Final = PrincipalId("usr_operator")

_ADAPTERS: Final = "AGENTOS_ADAPTERS"
_WORKER_PORTS: Final = ("queue", "issuer", "model")


class Directory(Struct, frozen=True, kw_only=True):
    tenants: TenantDirectory
    agents: AgentRegistry


class Journals(Struct, frozen=True, kw_only=True):
    runs: RunStatePort
    agents: AgentRegistry
    tools: ToolPort


def operator_of(tenant: TenantId) -> AuthContext:
    """The operator, acting in one tenant."""
    return AuthContext(tenant=tenant, principal=OPERATOR, scopes=SCOPES, roles=frozenset({"platform_admin"}))


@asynccontextmanager
async def open_directory(node: Node) -> AsyncIterator[Directory]:
    """The tenant directory and the agent registry of this node's database.

    Raises:
        Unavailable: the node was never set up, or its database does not answer.
    """
    config = _database_of(node)
    choices = {name: Choice(adapter="postgres", config=dict(config)) for name in ("tenant", "agent")}
    async with open_ports(choices, dict.fromkeys(choices), clock=SystemClock()) as ports:
        yield Directory(tenants=ports["tenant"], agents=ports["agent"])


@asynccontextmanager
async def open_request_log(node: Node) -> AsyncIterator[RequestLog]:
    """What the gateway has noted of requests.

    Raises:
        Unavailable: as `open_directory`.
    """
    choice = Choice(adapter="postgres", config=_database_of(node))
    async with open_ports({"request_log": choice}, {"request_log": None}, clock=SystemClock()) as ports:
        yield cast("RequestLog", ports["request_log"])


@asynccontextmanager
async def open_gateway_configurations(node: Node) -> AsyncIterator[GatewayConfigurations]:
    """The stored versions of the gateway's configuration; works while no service does, as long as the database answers.

    Raises:
        Unavailable: the node was never set up, or its database does not answer.
    """
    choices = {"gateway_configuration": Choice(adapter="postgres", config=_database_of(node))}
    async with open_ports(choices, dict.fromkeys(choices), clock=SystemClock()) as ports:
        yield cast("GatewayConfigurations", ports["gateway_configuration"])


@asynccontextmanager
async def open_platform(node: Node, *, opened: Open = as_it_is, tell: Tell = nobody) -> AsyncIterator[Platform]:
    """What the platform does to tenants; works while no service does, as long as the database answers.

    `opened` and `tell` are for exports of subjects.

    Raises:
        Unavailable: as `open_directory`.
    """
    config = _database_of(node)
    names = ("tenant", "run_state", "budget", "request_log", "administration", "privacy", "audit")
    choices = {name: Choice(adapter="postgres", config=dict(config)) for name in names}

    async def export(tenant: TenantId) -> Export:
        target = export_path(node.exports, tenant, datetime.now(UTC))
        return await export_tenant(str(config["dsn"]), tenant, target, homes_in(config))

    async def export_one(tenant: TenantId, subject: PrincipalId) -> Export:
        target = subject_export_path(node.exports, tenant, subject, datetime.now(UTC))
        return await export_subject(
            str(config["dsn"]), tenant, subject, target, homes_in(config), opened=opened, tell=tell
        )

    async with open_ports(choices, dict.fromkeys(names), clock=SystemClock()) as ports:
        yield Platform(
            tenants=ports["tenant"],
            runs=ports["run_state"],
            budget=ports["budget"],
            requests=ports["request_log"],
            administration=ports["administration"],
            privacy=ports["privacy"],
            audit=ports["audit"],
            export=export,
            export_subject=export_one,
        )


@asynccontextmanager
async def open_audit(node: Node) -> AsyncIterator[AuditLog]:
    """What was done and denied on this node; works while no service does, as long as the database answers.

    Raises:
        Unavailable: as `open_directory`.
    """
    choice = Choice(adapter="postgres", config=_database_of(node))
    async with open_ports({"audit": choice}, {"audit": None}, clock=SystemClock()) as ports:
        yield cast("AuditLog", ports["audit"])


@asynccontextmanager
async def open_issuer(node: Node, config: Config) -> AsyncIterator[TokenIssuer]:
    """The node's own issuer, to mint a token for a person with a terminal."""
    key = node.secret(credentials.ISSUER_KEY)
    if not key.exists():
        raise Unavailable(f"there is no node at {node.home}; start one with ./agentos up")
    choice = Choice(adapter="tokens", config={"private_key_file": str(key), "issuer": config.issuer})
    async with open_ports({"issuer": choice}, {"issuer": None}, clock=SystemClock()) as ports:
        yield cast("TokenIssuer", ports["issuer"])


@asynccontextmanager
async def open_journals(node: Node, environ: Mapping[str, str], *, tools_file: str) -> AsyncIterator[Journals]:
    """Runs and what they were decided from, for reading.

    `AGENTOS_ADAPTERS` and `tools_file` say where tools come from, as to a worker.

    Raises:
        Unavailable: the node was never set up, or its database does not answer.
    """
    config = _database_of(node)
    choices = {
        name: Choice(adapter="postgres", config=dict(config)) for name in ("run_state", "agent", "memory", "tenant")
    }
    choices |= {"egress": egress_of_a_node(""), "tool": tools_of_a_node(tools_file)}
    # A worker has ports that nothing is to be replayed with.
    chosen = choices_from(environ.get(_ADAPTERS), {**dict.fromkeys(_WORKER_PORTS, Choice(adapter="")), **choices})
    needs = dict.fromkeys(("run_state", "agent", "tool"))
    async with open_ports(chosen, needs, clock=SystemClock()) as ports:
        yield Journals(runs=ports["run_state"], agents=ports["agent"], tools=ports["tool"])


def _database_of(node: Node) -> dict[str, Json]:
    path = node.secret(credentials.CONTROL_URL)
    if not path.exists():
        raise Unavailable(f"there is no node at {node.home}, or one of an older version; start it with ./agentos up")
    database: dict[str, Json] = {"dsn": path.read_text(encoding="utf-8").strip()}
    # As `up` has written them: settings that have changed since are not in force yet.
    homes: list[Json] = [
        [name, node.secret(control_url_file(name)).read_text(encoding="utf-8").strip()] for name in homes_set_up(node)
    ]
    return {**database, "homes": homes} if homes else database
