"""Runs: create, get, list, cancel, steps, events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, get_args

from litestar import Response, get, post

from ports.cursor import decode_cursor, encode_cursor
from ports.errors import InvalidArgument, NotFound, PermissionDenied
from ports.http import sse
from ports.http.edge import Exchange, decoded, exchange
from ports.ids import AgentId, RunId, is_agent_id, uuid_of
from ports.run_intake import RunRequest
from ports.run_state import TERMINAL, Idempotency, RunFilter, RunStatus
from stack_a.http import wire
from stack_a.http.given import Admitted, Deps, Family, HttpRequest, Intake, Limit, PathText, QueryText, Streams
from stack_a.http.stream import EventStream, frames
from stack_a.runs.plan import digest

_CREATE: Final = "POST /v1/agents/{agent_id}/runs"
_CANCEL: Final = "POST /v1/runs/{run_id}:cancel"
_STEPS: Final = "steps"


@post("/v1/agents/{agent_id:str}/runs")
async def create_run(request: HttpRequest, agent_id: PathText, intake: Intake) -> Response[bytes]:
    found = exchange(request.scope)
    auth = found.identity
    body = decoded(found.json, wire.CreateRun)
    if body.tenant is not None and body.tenant != auth.tenant:
        raise PermissionDenied("`tenant` differs from the token's tenant", code="tenant_mismatch")
    if not is_agent_id(agent_id):
        raise NotFound(f"there is no agent {agent_id!r}")
    if body.tool_allowlist is not None and len(set(body.tool_allowlist)) < len(body.tool_allowlist):
        raise InvalidArgument("$.tool_allowlist: a tool is named twice", code="validation_failed")
    created = await intake.accept(
        auth,
        RunRequest(
            agent_id=AgentId(agent_id),
            input=body.input,
            idempotency=idempotency_of(found, _CREATE, agent_id),
            context=body.context,
            tool_allowlist=body.tool_allowlist,
            session_id=body.session_id,
            deadline=wire.deadline_of(body),
            priority=body.priority,
        ),
    )
    return wire.json_response(wire.run_accepted(created.run, auth), status=202)


@get("/v1/runs")
async def list_runs(
    request: HttpRequest,
    deps: Deps,
    *,
    limit: Limit = wire.DEFAULT_PAGE,
    cursor: QueryText = None,
    status: QueryText = None,
    agent_id: QueryText = None,
    parent_run_id: QueryText = None,
) -> Response[bytes]:
    auth = exchange(request.scope).identity
    if agent_id is not None and not is_agent_id(agent_id):
        raise InvalidArgument("agent_id can't be an agent's: they look like agt_<name>")
    if parent_run_id is not None and uuid_of("run", parent_run_id) is None:
        raise InvalidArgument("parent_run_id can't be a run's: they look like run_<32 hexadecimal digits>")
    where = RunFilter(
        status=_status(status),
        agent_id=None if agent_id is None else AgentId(agent_id),
        parent=None if parent_run_id is None else RunId(parent_run_id),
    )
    page = await deps.run_state.list_runs(auth, where, limit=limit, cursor=cursor)
    return wire.json_response(
        wire.RunPage(
            items=tuple(wire.run_view(run) for run in page.items),
            next_cursor=page.next_cursor,
            tenant_id=auth.tenant,
            correlation_id=auth.trace.correlation_id,
        )
    )


@get("/v1/runs/{run_id:str}")
async def get_run(request: HttpRequest, run_id: PathText, deps: Deps) -> Response[bytes]:
    auth = exchange(request.scope).identity
    return wire.json_response(wire.run_view(await deps.run_state.load(auth, run_id_of(run_id))))


@post("/v1/runs/{run_id:str}/:cancel")
async def cancel_run(request: HttpRequest, run_id: PathText, deps: Deps, family: Family) -> Response[bytes]:
    found = exchange(request.scope)
    body = decoded(found.json, wire.CancelRun)
    run = await deps.run_state.cancel(
        found.identity, run_id_of(run_id), reason=body.reason, idempotency=idempotency_of(found, _CANCEL, run_id)
    )
    if run.status in TERMINAL:
        await family.ended(found.identity, run)
    return wire.json_response(wire.changed_view(run, found.identity))


@get("/v1/runs/{run_id:str}/steps")
async def list_steps(
    request: HttpRequest,
    run_id: PathText,
    deps: Deps,
    limit: Limit = wire.DEFAULT_PAGE,
    cursor: QueryText = None,
) -> Response[bytes]:
    auth = exchange(request.scope).identity
    after = 0 if cursor is None else decode_cursor(_STEPS, cursor, int)
    known = run_id_of(run_id)
    steps = await deps.run_state.steps(auth, known, after=after, limit=limit)
    full = len(steps) == limit
    more = bool(full and await deps.run_state.steps(auth, known, after=steps[-1].n, limit=1))
    return wire.json_response(
        wire.StepPage(
            items=tuple(wire.step_view(step) for step in steps),
            next_cursor=encode_cursor(_STEPS, steps[-1].n) if more else None,
            run_id=run_id,
            tenant_id=auth.tenant,
            correlation_id=auth.trace.correlation_id,
        )
    )


@get("/v1/runs/{run_id:str}/events")
async def follow_events(
    request: HttpRequest,
    run_id: PathText,
    deps: Deps,
    *,
    admission: Admitted,
    streams: Streams,
    after: QueryText = None,
) -> EventStream:
    found = exchange(request.scope)
    auth = found.identity
    cursor = request.headers.get("last-event-id", after)
    start = 0 if cursor is None else sse.parse_cursor(cursor, deps.event.stream_epoch)
    known = run_id_of(run_id)
    # Absent, foreign or beyond the end: said with a status, before the stream begins.
    await deps.event.read(auth, known, after=start, limit=1)
    give_back = streams.take(auth, await admission.entitlements(auth))

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            events = deps.event.follow(auth, known, after=start)
            chunks = frames(
                events,
                stream_epoch=deps.event.stream_epoch,
                found=found,
                clock=deps.clock,
                closing=streams.closing,
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            give_back()

    return EventStream(body(), streams.closing)


def run_id_of(text: str) -> RunId:
    if uuid_of("run", text) is None:
        raise NotFound(f"there is no run {text!r}")
    return RunId(text)


def _status(text: str | None) -> RunStatus | None:
    if text is None:
        return None
    for status in get_args(RunStatus):
        if text == status:
            return status  # type: ignore[no-any-return]  # one of the literal's own values
    raise InvalidArgument(f"status must be one of {', '.join(get_args(RunStatus))}")


def idempotency_of(found: Exchange, route: str, *path: str) -> Idempotency:
    assert found.idempotency_key is not None, f"{route} is declared a mutation"
    return Idempotency(route=route, key=found.idempotency_key, fingerprint=digest([*path, found.json]))
