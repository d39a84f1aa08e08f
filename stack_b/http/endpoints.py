"""The endpoints: each takes what the edge parsed, makes it canonical, and hands it to the pipeline."""

from collections.abc import Mapping
from typing import Final

import msgspec

from ports.context import AuthContext
from ports.errors import NotFound
from ports.http.edge import decoded
from ports.http.headers import Headers
from ports.http.health import OK, Probe, states_of
from ports.http.permissions import PATH, permissions_of
from ports.http.routes import RouteTable
from ports.messages import Json
from stack_b.backends.catalog import Candidate
from stack_b.caller import Caller
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.deps import StackBDeps
from stack_b.following import Standing
from stack_b.http.about import told
from stack_b.http.asked import Asked, Endpoint, Reply, Whole
from stack_b.http.once import asked_once, client_of
from stack_b.http.parse import PREFERENCE, chat_call, embed_call, preferring, step_key
from stack_b.http.replies import json_reply, unless_gone
from stack_b.http.wire import Health, InForce, ModelList, ModelView, Readiness, StepBody, StepView
from stack_b.limits import Limits
from stack_b.once import of_step
from stack_b.pipeline import Pipeline
from stack_b.steps import Steps

MODELS: Final = "/v1/models"


def call_endpoints(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> dict[str, Endpoint]:
    """What is posted under `/v1` beside the surfaces on which a model writes, by path."""

    async def cancel_step(asked: Asked) -> Reply:
        found = asked.exchange
        auth, key = found.identity, step_key(decoded(found.json, StepBody).step_key)
        aborted = await steps.abort(auth, of_step(auth, key), found.template)
        correlation_id = auth.trace.correlation_id
        return json_reply(StepView(step_key=key, aborted=aborted, tenant_id=auth.tenant, correlation_id=correlation_id))

    async def embeddings(asked: Asked) -> Reply:
        found = asked.exchange
        call = told(preferring(embed_call(found.json, deps.limits), found.headers.text(PREFERENCE)), found.headers)
        call = msgspec.structs.replace(call, route=found.template)
        auth, client = found.identity, client_of(found.headers)
        once = asked_once(found.headers, auth, call, client)
        if once is not None:
            return json_reply(await steps.whole(auth, call, once))
        flight = None if client is None else steps.flight(auth, call, client)
        caller = Caller()
        return json_reply(await unless_gone(asked, pipeline.embed(auth, call, caller=caller), caller, flight))

    async def policy_check(asked: Asked) -> Reply:
        found = asked.exchange
        auth = found.identity
        call = _checked(found.json, deps.limits, found.headers.text(PREFERENCE), found.headers)
        call = msgspec.structs.replace(call, route=found.template)
        verdict = await pipeline.check(auth, call)
        if verdict.refusal is not None:
            await pipeline.recorder.foretold(auth, call, verdict.policy_outcome, verdict.refusal)
        whose = {"tenant_id": auth.tenant, "correlation_id": auth.trace.correlation_id}
        return json_reply({**msgspec.structs.asdict(verdict), **whose})

    return {
        "/v1/steps:cancel": cancel_step,
        "/v1/embeddings": embeddings,
        "/v1/policy/check": policy_check,
    }


def model_endpoints(pipeline: Pipeline) -> dict[str, Endpoint]:
    """What may be asked of, by path."""

    async def models(asked: Asked) -> Reply:
        auth = asked.exchange.identity
        views = [_view(candidate, auth) for candidate in await pipeline.models(auth)]
        return json_reply(ModelList(data=views, tenant_id=auth.tenant, correlation_id=auth.trace.correlation_id))

    async def model(asked: Asked) -> Reply:
        auth, name = asked.exchange.identity, asked.path.removeprefix(f"{MODELS}/")
        for candidate in await pipeline.models(auth):
            if candidate.card.id == name:
                return json_reply(_view(candidate, auth))
        raise NotFound("there is no such model for this tenant; GET /v1/models lists what it may use")

    return {MODELS: models, f"{MODELS}/{{model}}": model}


def permission_endpoint(table: RouteTable) -> dict[str, Endpoint]:
    async def permissions(asked: Asked) -> Reply:
        return json_reply(permissions_of(asked.exchange.identity, table.routes))

    return {PATH: permissions}


def operator_endpoints(deps: StackBDeps, probes: Mapping[str, Probe], openapi: bytes) -> dict[str, Endpoint]:
    """Health, metrics and the OpenAPI document, by path."""

    async def healthz(_: Asked) -> Reply:
        return json_reply(Health())

    async def readyz(_: Asked) -> Reply:
        states = await states_of(probes)
        ready = all(state == OK for state in states.values())
        view = Readiness(
            status=OK if ready else "unavailable",
            dependencies=states,
            models=len(deps.catalog.served()),
            configuration=in_force(deps.standing),
        )
        return Whole(msgspec.json.encode(view), status=200 if ready else 503)

    async def metrics(_: Asked) -> Reply:
        return Whole(deps.metrics.render(), media_type=deps.metrics.content_type.encode())

    async def document(_: Asked) -> Reply:
        return Whole(openapi)

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/openapi.json": document}


def in_force(standing: Standing) -> InForce:
    return InForce(
        source=standing.origin,
        version=standing.version,
        digest=standing.digest,
        refused=standing.refused,
        refused_version=standing.refused_version if standing.refused else 0,
        store_answers=standing.reachable,
    )


def _checked(value: dict[str, Json], limits: Limits, preference: str | None, headers: Headers) -> ChatCall | EmbedCall:
    """The call that is asked about: an embedding where there is something to embed and no conversation."""
    if "input" in value and "messages" not in value:
        return told(preferring(embed_call(value, limits), preference), headers)
    return told(preferring(chat_call(value, limits), preference), headers)


def _view(candidate: Candidate, auth: AuthContext) -> ModelView:
    return ModelView(
        id=candidate.card.id,
        owned_by=candidate.backend.name,
        chat=candidate.card.chat,
        embed=candidate.card.embed,
        tenant_id=auth.tenant,
        correlation_id=auth.trace.correlation_id,
    )
