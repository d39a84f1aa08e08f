"""The operator's way in: the ports behind the services, opened from the command line.

For what the public API has no door to (tenants, keys, publishing an agent). The identity is the operator's: whoever can
read this node's secrets directory.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

from msgspec import Struct

from adapters.system_clock import SystemClock
from deploy import credentials
from deploy.config import Config
from deploy.node import Node
from deploy.roots.wiring import Choice, open_ports
from ports.agent import AgentRegistry
from ports.auth import TokenIssuer
from ports.context import SCOPES, AuthContext
from ports.errors import Unavailable
from ports.ids import PrincipalId, TenantId
from ports.tenant import TenantDirectory

OPERATOR: Final = PrincipalId("usr_operator")


class Directory(Struct, frozen=True, kw_only=True):
    tenants: TenantDirectory
    agents: AgentRegistry


def operator_of(tenant: TenantId) -> AuthContext:
    """The operator, acting in one tenant."""
    return AuthContext(tenant=tenant, principal=OPERATOR, scopes=SCOPES, roles=frozenset({"platform_admin"}))


@asynccontextmanager
async def open_directory(node: Node) -> AsyncIterator[Directory]:
    """The tenant directory and the agent registry of this node's database.

    Raises:
        Unavailable: the node was never set up, or its database does not answer.
    """
    path = node.secret(credentials.APP_URL)
    if not path.exists():
        raise Unavailable(f"there is no node at {node.home}; start one with ./agentos up")
    config = {"dsn": path.read_text(encoding="utf-8").strip()}
    choices = {name: Choice(adapter="postgres", config=dict(config)) for name in ("tenant", "agent")}
    async with open_ports(choices, dict.fromkeys(choices), clock=SystemClock()) as ports:
        yield Directory(tenants=ports["tenant"], agents=ports["agent"])


@asynccontextmanager
async def open_issuer(node: Node, config: Config) -> AsyncIterator[TokenIssuer]:
    """The node's own issuer, to mint a token for a person with a terminal."""
    key = node.secret(credentials.ISSUER_KEY)
    if not key.exists():
        raise Unavailable(f"there is no node at {node.home}; start one with ./agentos up")
    choice = Choice(adapter="tokens", config={"private_key_file": str(key), "issuer": config.issuer})
    async with open_ports({"issuer": choice}, {"issuer": None}, clock=SystemClock()) as ports:
        yield cast("TokenIssuer", ports["issuer"])
