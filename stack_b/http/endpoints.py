"""The endpoints: each takes what the edge parsed, makes it canonical, and hands it to the pipeline."""

from collections.abc import Mapping

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp

from ports.context import AuthContext
from ports.errors import NotFound
from ports.http.edge import decoded, exchange
from ports.http.health import OK, Probe, states_of
from stack_b.backends.catalog import Candidate
from stack_b.caller import Caller
from stack_b.deps import StackBDeps
from stack_b.http.completions import Asked
from stack_b.http.parse import PREFERENCE, chat_call, embed_call, preferring, step_key
from stack_b.http.replies import JsonReply, asgi, json_reply, unless_gone
from stack_b.http.wire import Health, ModelList, ModelView, Readiness, StepBody, StepView
from stack_b.pipeline import Pipeline
from stack_b.steps import Steps


def model_routes(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> list[HTTPRouteHandler]:
    """What is under `/v1` beside the surfaces on which a model writes."""

    @post("/v1/steps:cancel", status_code=200)
    async def cancel_step(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        auth, key = found.identity, step_key(decoded(found.json, StepBody).step_key)
        aborted = await steps.abort(auth, key)
        correlation_id = auth.trace.correlation_id
        return json_reply(StepView(step_key=key, aborted=aborted, tenant_id=auth.tenant, correlation_id=correlation_id))

    @post("/v1/embeddings", status_code=200)
    async def embeddings(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        call = preferring(embed_call(found.json, deps.limits), request.headers.get(PREFERENCE))
        caller = Caller()
        work = pipeline.embed(found.identity, call, caller=caller)
        return json_reply(await unless_gone(request.receive, work, caller))

    @post("/v1/policy/check", status_code=200)
    async def policy_check(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        auth = found.identity
        call = preferring(chat_call(found.json, deps.limits), request.headers.get(PREFERENCE))
        verdict = await pipeline.check(auth, call)
        whose = {"tenant_id": auth.tenant, "correlation_id": auth.trace.correlation_id}
        return json_reply({**msgspec.structs.asdict(verdict), **whose})

    @get("/v1/models")
    async def models(request: Asked) -> ASGIApp:
        auth = exchange(request.scope).identity
        views = [_view(candidate, auth) for candidate in await pipeline.models(auth)]
        return json_reply(ModelList(data=views, tenant_id=auth.tenant, correlation_id=auth.trace.correlation_id))

    @get("/v1/models/{model:path}")
    async def model(request: Asked, model: FromPath[str]) -> ASGIApp:
        auth = exchange(request.scope).identity
        for candidate in await pipeline.models(auth):
            if candidate.card.id == model.removeprefix("/"):
                return json_reply(_view(candidate, auth))
        raise NotFound("there is no such model for this tenant; GET /v1/models lists what it may use")

    return [cancel_step, embeddings, policy_check, models, model]


def operator_routes(deps: StackBDeps, probes: Mapping[str, Probe], openapi: bytes) -> list[HTTPRouteHandler]:
    """Health, metrics and the OpenAPI document."""

    @get("/healthz")
    async def healthz() -> ASGIApp:
        return json_reply(Health())

    @get("/readyz")
    async def readyz() -> ASGIApp:
        states = await states_of(probes)
        ready = all(state == OK for state in states.values())
        view = Readiness(status=OK if ready else "unavailable", dependencies=states, models=len(deps.catalog.served()))
        return json_reply(view, status=200 if ready else 503)

    @get("/metrics")
    async def metrics() -> ASGIApp:
        return asgi(JsonReply(deps.metrics.render(), media_type=deps.metrics.content_type.encode()))

    @get("/openapi.json")
    async def document() -> ASGIApp:
        return asgi(JsonReply(openapi))

    return [healthz, readyz, metrics, document]


def _view(candidate: Candidate, auth: AuthContext) -> ModelView:
    return ModelView(
        id=candidate.card.id,
        owned_by=candidate.backend.name,
        chat=candidate.card.chat,
        embed=candidate.card.embed,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )
