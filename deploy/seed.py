"""What a demo or dev node starts with: a tenant, its admin, an agent with every built-in tool, keys, a signing key.

Everything is looked for before it is made: seeding twice changes nothing.
"""

import time
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec import Struct

from adapters.token_auth import issuer, keys
from adapters.token_auth.rotation import with_key
from deploy import credentials
from deploy.config import Config
from deploy.credentials import SeededKey, Tokens
from deploy.internal import Directory, operator_of
from deploy.issuer_keys import published
from deploy.node import Node
from deploy.report import Seeded
from deploy.roles import scopes_of
from ports.agent import AgentSpec, digest_of
from ports.context import DEFAULT_NAMESPACE
from ports.errors import Conflict, NotFound
from ports.ids import AgentId, PrincipalId, TenantId
from ports.tenant import Entitlements, NewKey

TENANT: Final = TenantId("tnt_demo")
AGENT: Final = AgentId("agt_demo")
ADMIN: Final = PrincipalId("usr_demo_admin")
TOOLS: Final = ("calculator", "clock", "http_get", "memory_put", "memory_search", "text_stats")

# Name in tokens.json → who it speaks for, and as what.
_KEYS: Final = {"tenant_admin": (ADMIN, "tenant_admin"), "app": (PrincipalId("svc_demo_app"), "service")}


class SeedResult(Struct, frozen=True, kw_only=True):
    seeded: Seeded
    made: tuple[str, ...]
    """What was not there before, in words."""


def demo_agent(model: str) -> AgentSpec:
    return AgentSpec(
        id=AGENT,
        description="The sample agent: answers with the help of every built-in tool.",
        instructions=(
            "Answer the user's question. Use the tools for whatever they can do better than you: arithmetic, text "
            "statistics, the time, the memory, fetching a page. State each result."
        ),
        model=model,
        tools=TOOLS,
    )


def ensure_issuer_key(node: Node) -> bool:
    """The key this node signs tokens with, and its public half for the verifiers; True when it was made."""
    path = node.secret(credentials.ISSUER_KEY)
    made = not path.exists()
    key = issuer.generate_key(path) if made else issuer.load_key(path)
    document = with_key(published(node), key, now=time.time())
    return credentials.write_if_changed(node.secret(credentials.JWKS), msgspec.json.encode(document).decode()) or made


async def seed_demo(node: Node, directory: Directory, config: Config) -> SeedResult:
    made = []
    operator = operator_of(TENANT)
    try:
        entitlements = Entitlements(tokens_per_day=config.tokens_per_day)
        await directory.tenants.create(operator, TENANT, name="Demo", entitlements=entitlements)
        made.append(f"tenant {TENANT}")
    except Conflict:
        pass
    spec = demo_agent(config.demo_agent_model)
    try:
        known = (await directory.agents.get(operator, AGENT)).digest
    except NotFound:
        known = ""
    agent = await directory.agents.publish(operator, spec)
    if known != digest_of(spec):
        made.append(f"agent {AGENT} version {agent.version}")
    tokens, new_keys = await _keys(node, directory, config.mode)
    made += [f"key {name}" for name in new_keys]
    seeded = Seeded(
        tenant_id=TENANT,
        admin_principal=ADMIN,
        agent_id=AGENT,
        agent_version=agent.version,
        agent_digest=agent.digest,
        tools=TOOLS,
        key_ids={name: key.key_id for name, key in tokens.keys.items()},
    )
    return SeedResult(seeded=seeded, made=tuple(made))


async def issue(
    directory: Directory,
    tenant: TenantId,
    *,
    principal: PrincipalId,
    role: str | None,
    env: str,
    label: str,
    scopes: frozenset[str] = frozenset(),
    namespace: str = DEFAULT_NAMESPACE,
    lifetime: timedelta | None = None,
    now: datetime | None = None,
) -> SeededKey:
    """A new key in clear, with `scopes` where it has no role; the database keeps a digest. A lifetime counts from `now`."""
    secret = keys.new_secret()
    new = NewKey(
        principal=principal,
        scopes=scopes if role is None else scopes_of(role),
        roles=frozenset() if role is None else frozenset({role}),
        label=label,
        secret_sha256=keys.digest(secret),
        expires_at=now + lifetime if now and lifetime else None,
    )
    operator = msgspec.structs.replace(operator_of(tenant), namespace=namespace)
    key = await directory.tenants.issue_key(operator, new)
    return SeededKey(
        principal=principal,
        roles=tuple(new.roles),
        scopes=tuple(sorted(new.scopes)),
        key_id=key.id,
        api_key=keys.render(env, key.id, secret),
    )


async def _keys(node: Node, directory: Directory, mode: str) -> tuple[Tokens, list[str]]:
    """The seeded keys, of which those that no longer work are issued again."""
    old = credentials.load_tokens(node)
    kept = dict(old.keys) if old is not None else {}
    new = []
    for name, (principal, role) in _KEYS.items():
        if name in kept and await _works(directory, kept[name].api_key):
            continue
        kept[name] = await issue(directory, TENANT, principal=principal, role=role, env=mode, label=f"seeded: {name}")
        new.append(name)
        # At once: a key whose secret was lost on the way would be of no use to anybody.
        credentials.save_tokens(node, Tokens(tenant_id=TENANT, agent_id=AGENT, keys=kept))
    return Tokens(tenant_id=TENANT, agent_id=AGENT, keys=kept), new


async def _works(directory: Directory, api_key: str) -> bool:
    parsed = keys.parse(api_key)
    return (
        parsed is not None and await directory.tenants.find_key(parsed.key_id, keys.digest(parsed.secret)) is not None
    )
