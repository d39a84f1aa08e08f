"""Stack B in this process over adapters of `adapters.inproc`, and the pieces to script it with."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx
import msgspec
from msgspec.structs import replace

from adapters import regex_pii
from adapters.inproc import budget, reply_journal, request_log, store, tenant
from adapters.inproc.store import InprocConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, ACME_BEN, GLOBEX, NODE
from observability.metrics import Metrics
from ports.adapter import Given
from ports.auth import mismatch
from ports.budget import Balance
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Unauthenticated
from ports.http.edge import App
from ports.pii import PiiMode
from ports.policy import Policy
from ports.tenant import Entitlements
from stack_b.app import open_app
from stack_b.backends.catalog import Catalog
from stack_b.backends.demo import DemoBackend
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import Backend
from stack_b.backends.reach import Reach
from stack_b.deps import StackBDeps
from stack_b.limits import Limits
from stack_b.policies.desk import Policies
from stack_b.policies.problems import parse_policy
from stack_b.routing.router import Router
from stack_b.routing.rules import RoutingRules
from stack_b.vault import Vault

MAY_INVOKE = frozenset({"models:invoke"})
CALLERS = {
    "acme": replace(ACME, scopes=MAY_INVOKE),
    "colleague": replace(ACME_BEN, scopes=MAY_INVOKE),
    "globex": replace(GLOBEX, scopes=MAY_INVOKE),
    "reader": replace(ACME, scopes=frozenset({"runs:read"})),
}
VAULT = Vault({"tests": bytes(32)})
"""Of all gateways: what one has sealed, another opens."""
PLATFORM = replace(NODE, scopes=frozenset({"admin:platform"}))


class Tokens:
    """A verifier for tests: a token is a name. `revoked` ones stop being valid."""

    def __init__(self, callers: Mapping[str, AuthContext] | None = None) -> None:
        """`callers`: who they are otherwise than in `CALLERS`."""
        self.revoked: set[str] = set()
        self._callers = {**CALLERS, **(callers or {})}

    async def verify(self, token: str) -> AuthContext:
        if token in self.revoked or token not in self._callers:
            raise Unauthenticated("the token is not valid")
        return self._callers[token]

    def at_hand(self, token: str) -> AuthContext | None:
        return None if token in self.revoked else self._callers.get(token)

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


@dataclass(kw_only=True)
class StackB:
    app: App
    deps: StackBDeps
    tokens: Tokens
    http: httpx.AsyncClient
    limit: int

    async def post(self, path: str, body: Any, who: str = "acme", **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers={"authorization": f"Bearer {who}", **headers})

    async def chat(self, text: str = "hello", who: str = "acme", **members: Any) -> httpx.Response:
        body = {"model": "agentos-demo", "messages": [{"role": "user", "content": text}], **members}
        return await self.post("/v1/chat/completions", body, who)

    async def get(self, path: str, who: str = "acme") -> httpx.Response:
        return await self.http.get(path, headers={"authorization": f"Bearer {who}"})

    async def balance(self, who: str = "acme") -> Balance:
        """As the ledger has it."""
        return await self.deps.budget.balance(CALLERS[who], limit=self.limit)


def policy_of(rules: Sequence[Mapping[str, Any]]) -> Policy:
    """As an operator would write it, its problems included."""
    return parse_policy(msgspec.json.encode({"rules": list(rules)}))


@asynccontextmanager
async def stack_b(
    *backends: Backend,
    limit: int = 1_000_000,
    models: Sequence[str] = ("*",),
    limits: Limits | None = None,
    clock: Clock | None = None,
    routing: RoutingRules | None = None,
    pii_modes: Mapping[str, PiiMode] | None = None,
    vault: Vault | None = None,
    node_rules: Sequence[Mapping[str, Any]] = (),
    rules: Sequence[Mapping[str, Any]] = (),
    entitled: Mapping[str, Any] | None = None,
    reaches: Mapping[str, Reach] | None = None,
    **wrapped: Any,
) -> AsyncIterator[StackB]:
    """A gateway of its own with two tenants; `wrapped` replaces a port by name. Without backends, the demo backend's.

    `node_rules` are the node's policy `house`, `rules` the tenants' own, both as JSON; `entitled` is what else tenants may
    or may not. Backends with connections are closed at the end.
    """
    given = Given(clock=clock or SystemClock())
    config = InprocConfig(name=uuid.uuid4().hex)
    tokens = Tokens()
    async with AsyncExitStack() as stack:
        stack.callback(store.drop, config.name)
        for backend in backends:
            if isinstance(backend, OpenAiCompatible):
                stack.push_async_callback(backend.aclose)
        directory = await stack.enter_async_context(tenant.SPEC.open(config, given))
        ledger = await stack.enter_async_context(budget.SPEC.open(config, given))
        detector = await stack.enter_async_context(regex_pii.SPEC.open(regex_pii.SPEC.config(), given))
        entitlements = Entitlements(
            models=tuple(models),
            tokens_per_day=limit,
            pii=dict(pii_modes or {}),
            policy=policy_of(rules),
            **(entitled or {}),
        )
        for who in ("acme", "globex"):
            await directory.create(PLATFORM, CALLERS[who].tenant, name=who, entitlements=entitlements)
        catalog = Catalog(backends or (DemoBackend(given.clock),), given.clock)
        await catalog.refresh()
        journal = await stack.enter_async_context(reply_journal.SPEC.open(config, given))
        ports: dict[str, Any] = {
            "metrics": Metrics(),
            "tenant": directory, "budget": ledger, "reply_journal": journal, "pii": detector, "verifier": tokens,
            "request_log": await stack.enter_async_context(request_log.SPEC.open(config, given)),
        } | wrapped  # fmt: skip
        deps = StackBDeps(
            clock=given.clock,
            catalog=catalog,
            router=Router(catalog, routing or RoutingRules(), given.clock, reaches=reaches),
            policies=Policies({"house": policy_of(node_rules)} if node_rules else {}),
            limits=limits or Limits(),
            vault=vault or VAULT,
            **ports,
        )
        app = await stack.enter_async_context(open_app(deps))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(cast("Any", app)), base_url="http://gateway")
        yield StackB(app=app, deps=deps, tokens=tokens, http=await stack.enter_async_context(http), limit=limit)


@asynccontextmanager
async def upstream_at(url: str, **settings: Any) -> AsyncIterator[OpenAiCompatible]:
    """A backend at `url`, closed at the end of the block."""
    backend = OpenAiCompatible(name=settings.pop("name", "up"), base_url=url, **settings)
    try:
        yield backend
    finally:
        await backend.aclose()
