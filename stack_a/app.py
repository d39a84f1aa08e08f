"""Stack A's public API as one ASGI app: the route table, nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler

from observability.http import observer
from observability.metrics import Metrics
from ports.context import QUEUE_ANY_TENANT, AuthContext
from ports.http.audit import ActingNotes, denials
from ports.http.edge import App, Edge
from ports.http.health import Probe
from ports.http.openapi import document
from ports.http.routes import LOOPBACK, PUBLIC, Route, RouteTable, public_template
from ports.ids import PrincipalId, TenantId
from stack_a.deps import ApiDeps
from stack_a.http.admission import Admission
from stack_a.http.agents import get_agent, list_agents
from stack_a.http.audit import query_audit
from stack_a.http.bare import BareLitestar
from stack_a.http.health import health_routes
from stack_a.http.issuer import issuer_routes
from stack_a.http.permissions import my_permissions
from stack_a.http.routes import LIMITS, OPERATIONS, ROUTES
from stack_a.http.runs import cancel_run, create_run, follow_events, get_run, list_runs, list_steps
from stack_a.http.stream import OpenStreams
from stack_a.http.verbs import fork_run, resolve_step, retry_run
from stack_a.runs.again import Again
from stack_a.runs.family import Family
from stack_a.runs.shed import Shedder
from stack_a.runs.start import Intake

VERSION: Final = "1"

_SELF: Final = AuthContext(
    tenant=TenantId("tnt_system"), principal=PrincipalId("svc_stack_a"), scopes=frozenset({QUEUE_ANY_TENANT})
)


def create_app(deps: ApiDeps, streams: OpenStreams | None = None) -> App:
    """The public API. `deps` outlive it; who gives `streams` can close them all."""
    openapi = msgspec.json.encode(
        document(
            title="AgentOS Stack A",
            description="Run agents durably: create runs, follow their events, read their steps.",
            version=VERSION,
            routes=ROUTES,
            operations=OPERATIONS,
            limits=LIMITS,
        )
    )

    @get("/openapi.json")
    async def openapi_json() -> Response[bytes]:
        return Response(openapi, media_type="application/json")

    async def database_answers() -> None:
        await deps.queue.depth(_SELF)

    shedder = Shedder(deps.queue, deps.clock, deps.shedding, _SELF, deps.metrics)
    intake = Intake(
        run_state=deps.run_state,
        agent=deps.agent,
        queue=deps.queue,
        metrics=deps.metrics,
        shedder=shedder,
    )
    again = Again(run_state=deps.run_state, queue=deps.queue, metrics=deps.metrics, shedder=shedder)
    admission = Admission(deps.tenant, deps.clock, share=deps.share)
    streams = streams or OpenStreams(share=deps.share)
    family = Family(run_state=deps.run_state, queue=deps.queue)
    app = _litestar(
        [
            create_run, list_runs, get_run, cancel_run, retry_run, fork_run, resolve_step, list_steps, follow_events,
            list_agents, get_agent, query_audit, openapi_json, my_permissions(ROUTES),
            *issuer_routes(deps.published),
            *health_routes({"database": database_answers}, deps.metrics, first=shedder.look),
        ],
        {
            "deps": deps, "intake": intake, "again": again, "family": family, "admission": admission, "streams": streams,
        },
    )  # fmt: skip
    return Edge(
        cast(App, app),
        routes=ROUTES.with_denied(_served(app)),
        verifier=deps.verifier,
        observe=observer(deps.metrics),
        admit=admission.admit,
        acted=ActingNotes(deps.audit, deps.clock).acted,
        denied=(denied := denials(deps.audit)),
        denied_inside=denied,
    )


def create_worker_app(probes: Mapping[str, Probe], metrics: Metrics) -> App:
    """The worker's own health and metrics: no tenant's data passes here."""
    routes = RouteTable(
        (
            Route(method="GET", template="/healthz", access=PUBLIC),
            Route(method="GET", template="/readyz", access=PUBLIC),
            Route(method="GET", template="/metrics", access=LOOPBACK),
        )
    )
    app = _litestar(health_routes(probes, metrics), {})
    return Edge(cast(App, app), routes=routes.with_denied(_served(app)), verifier=None, observe=observer(metrics))


def _litestar(handlers: Sequence[HTTPRouteHandler], given: Mapping[str, object]) -> Litestar:
    """`given` are what handlers may ask for by name."""

    def provide(value: object) -> Provide:
        return Provide(lambda: value, sync_to_thread=False)

    return BareLitestar(
        route_handlers=list(handlers),
        dependencies={name: provide(value) for name, value in given.items()},
        # The edge answers every error, in one form.
        exception_handlers={Exception: _raise},
        openapi_config=None,
        logging_config=None,
    )


def _served(app: Litestar) -> list[tuple[str, str]]:
    return [
        (method, public_template(route.path_format))
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method != "OPTIONS"
    ]


def _raise(_: Request[Any, Any, Any], error: Exception) -> NoReturn:
    raise error
