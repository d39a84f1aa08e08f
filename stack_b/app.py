"""Stack B as one ASGI app: the route table, the edge around it, nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec

from observability.http import observer
from ports.context import AuthContext
from ports.errors import NotFound
from ports.http.body import Receive
from ports.http.edge import App, Edge, Exchange, Scope, Send
from ports.http.extensions import NO_FIELDS, AtOnce, Fields, Turn
from ports.http.openapi import document
from ports.ids import PrincipalId, TenantId
from stack_b.deps import StackBDeps
from stack_b.http.asked import served
from stack_b.http.completions import Completion, surface_endpoints
from stack_b.http.endpoints import call_endpoints, model_endpoints, operator_endpoints, permission_endpoint
from stack_b.http.errors import DOCUMENTED, anthropic_body, openai_members
from stack_b.http.routes import OPERATIONS, published, routes
from stack_b.pipeline import Pipeline
from stack_b.routing.probes import Prober
from stack_b.steps import Steps
from stack_b.tell import Tell

VERSION: Final = "1"
MESSAGES: Final = "/v1/messages"
_BELOW_MESSAGES: Final = f"{MESSAGES}/"

# Nobody's tenant: asking for its balance touches no row, and proves that the ledger answers.
_PROBE: Final = AuthContext(tenant=TenantId("tnt_system"), principal=PrincipalId("svc_stack_b"))


@asynccontextmanager
async def open_app(deps: StackBDeps) -> AsyncIterator[App]:
    """The gateway, its catalog kept fresh meanwhile. On the way out steps and settlements under way are waited for."""
    pipeline = Pipeline(deps, Tell(deps.metrics))
    steps = Steps(deps, pipeline)
    fresh = asyncio.create_task(deps.catalog.keep_fresh())
    probing = asyncio.create_task(Prober(deps.catalog, deps.router, deps.clock).keep_probing())
    try:
        yield _app(deps, pipeline, steps)
    finally:
        fresh.cancel()
        probing.cancel()
        await asyncio.wait({fresh, probing})
        await steps.drain()
        await pipeline.drain()


def _app(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> App:
    table = routes(deps.limits)
    openapi = document(
        title="AgentOS Stack B",
        description=(
            "A gateway for models, in the dialects of OpenAI and Anthropic, with entitlements, hard budgets and policy on "
            "every request."
        ),
        version=VERSION,
        routes=table,
        operations=OPERATIONS,
        limits=published(deps.limits),
        error_members=DOCUMENTED,
    )
    probes = {"budget": lambda: deps.budget.balance(_PROBE, limit=1)}
    posted = surface_endpoints(deps, pipeline, steps) | call_endpoints(deps, pipeline, steps)
    got = model_endpoints(pipeline) | permission_endpoint(table)
    got |= operator_endpoints(deps, probes, msgspec.json.encode(openapi))
    endpoints = {("POST", path): served(endpoint) for path, endpoint in posted.items()}
    endpoints |= {("GET", path): served(endpoint) for path, endpoint in got.items()}
    assert endpoints.keys() >= {(route.method, route.template) for route in table.routes}, "what is declared is served"
    edge = partial(
        Edge,
        _nothing,
        routes=table.with_denied(endpoints),
        verifier=deps.verifier,
        observe=observer(deps.metrics),
        endpoints=endpoints,
        beginnings={
            ("POST", path): endpoint.begin for path, endpoint in posted.items() if isinstance(endpoint, Completion)
        },
        denied=pipeline.recorder.turned_away,
        admit_denied=pipeline.admit,
    )
    # `x-ratelimit-*-tokens` on every response of a tenant whose balance is known, errors included.
    balances = pipeline.balances

    def standing(found: Exchange) -> Fields:
        return NO_FIELDS if found.auth is None else balances.headers(found.auth.tenant)

    def with_request_id(found: Exchange) -> Fields:
        names, values = standing(found)
        return (b"request-id", *names), (found.trace.correlation_id.encode(), *values)

    usual = edge(extra=openai_members, headers=standing)
    anthropic = edge(
        body=anthropic_body,
        key_header=b"x-api-key",
        # `request-id` is what Anthropic's clients look for.
        headers=with_request_id,
    )
    return _ByDialect(usual, anthropic)


class _ByDialect:
    """The same edge, app and rules, for clients of either make."""

    def __init__(self, usual: Edge, anthropic: Edge) -> None:
        self._usual = usual
        self._anthropic = anthropic

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._of(scope)(scope, receive, send)

    def at_once(self, turn: Turn) -> AtOnce | None:
        return self._of(turn.scope).at_once(turn)

    def _of(self, scope: Scope) -> Edge:
        path = scope.get("path", "")
        theirs = path == MESSAGES or path.startswith(_BELOW_MESSAGES)
        return self._anthropic if theirs else self._usual


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """There is no framework behind the edge: what it lets through has an endpoint."""
    raise NotFound("there is nothing at this path")
