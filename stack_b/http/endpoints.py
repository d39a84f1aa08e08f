"""The endpoints: each takes what the edge parsed, makes it canonical, and hands it to the pipeline."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp
from msgspec import Struct

from ports.context import AuthContext
from ports.errors import NotFound
from ports.http.edge import decoded, exchange
from ports.http.health import OK, Probe, states_of
from ports.messages import Json
from stack_b.backends.catalog import Candidate
from stack_b.deps import StackBDeps
from stack_b.http.parse import STEP_KEY, chat_call, embed_call, step_key
from stack_b.http.replies import ChatStream, JsonReply
from stack_b.http.wire import Health, ModelList, ModelView, Readiness, StepBody, StepView
from stack_b.pipeline import Pipeline
from stack_b.steps import Steps

Asked: TypeAlias = Request[Any, Any, Any]  # Litestar's user, auth and state: the edge's exchange has them instead


def model_routes(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> list[HTTPRouteHandler]:
    """Everything under `/v1`."""

    @post("/v1/chat/completions", status_code=200)
    async def chat(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        call = chat_call(found.json, deps.limits)
        auth, key = found.identity, _step_key(request)
        if call.stream:
            return _reply(
                ChatStream(
                    pipeline.stream(auth, call) if key is None else steps.stream(auth, call, key),
                    auth=auth,
                    clock=deps.clock,
                    reauthorize=found.reauthorize,
                    deadline=deps.limits.deadline,
                )
            )
        return _json(await (pipeline.chat(auth, call) if key is None else steps.chat(auth, call, key)))

    @post("/v1/steps:cancel", status_code=200)
    async def cancel_step(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        auth, key = found.identity, step_key(decoded(found.json, StepBody).step_key)
        aborted = await steps.abort(auth, key)
        correlation_id = auth.trace.correlation_id
        return _json(StepView(step_key=key, aborted=aborted, tenant_id=auth.tenant, correlation_id=correlation_id))

    @post("/v1/embeddings", status_code=200)
    async def embeddings(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        return _json(await pipeline.embed(found.identity, embed_call(found.json, deps.limits)))

    @post("/v1/policy/check", status_code=200)
    async def policy_check(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        auth = found.identity
        verdict = await pipeline.check(auth, chat_call(found.json, deps.limits))
        whose = {"tenant_id": auth.tenant, "correlation_id": auth.trace.correlation_id}
        return _json({**msgspec.structs.asdict(verdict), **whose})

    @get("/v1/models")
    async def models(request: Asked) -> ASGIApp:
        auth = exchange(request.scope).identity
        views = [_view(candidate, auth) for candidate in await pipeline.models(auth)]
        return _json(ModelList(data=views, tenant_id=auth.tenant, correlation_id=auth.trace.correlation_id))

    @get("/v1/models/{model:path}")
    async def model(request: Asked, model: FromPath[str]) -> ASGIApp:
        auth = exchange(request.scope).identity
        for candidate in await pipeline.models(auth):
            if candidate.card.id == model.removeprefix("/"):
                return _json(_view(candidate, auth))
        raise NotFound("there is no such model for this tenant; GET /v1/models lists what it may use")

    return [chat, cancel_step, embeddings, policy_check, models, model]


def operator_routes(deps: StackBDeps, probes: Mapping[str, Probe], openapi: bytes) -> list[HTTPRouteHandler]:
    """Health, metrics and the OpenAPI document."""

    @get("/healthz")
    async def healthz() -> ASGIApp:
        return _json(Health())

    @get("/readyz")
    async def readyz() -> ASGIApp:
        states = await states_of(probes)
        ready = all(state == OK for state in states.values())
        view = Readiness(status=OK if ready else "unavailable", dependencies=states, models=len(deps.catalog.served()))
        return _json(view, status=200 if ready else 503)

    @get("/metrics")
    async def metrics() -> ASGIApp:
        return _reply(JsonReply(deps.metrics.render(), media_type=deps.metrics.content_type.encode()))

    @get("/openapi.json")
    async def document() -> ASGIApp:
        return _reply(JsonReply(openapi))

    return [healthz, readyz, metrics, document]


def _step_key(request: Asked) -> str | None:
    given = request.headers.get(STEP_KEY)
    return None if given is None else step_key(given)


def _json(value: Struct | dict[str, Json], *, status: int = 200) -> ASGIApp:
    return _reply(JsonReply(msgspec.json.encode(value), status=status))


def _reply(reply: JsonReply | ChatStream) -> ASGIApp:
    return reply  # type: ignore[return-value]  # the same ASGI callable; Litestar spells its messages out


def _view(candidate: Candidate, auth: AuthContext) -> ModelView:
    return ModelView(
        id=candidate.card.id,
        owned_by=candidate.backend.name,
        chat=candidate.card.chat,
        embed=candidate.card.embed,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )
