"""Runs: retry, fork, and decide about a step of unknown outcome."""

from typing import Final

from litestar import Response, post

from ports.http.edge import decoded, exchange
from stack_a.http import wire
from stack_a.http.given import Again, HttpRequest, PathText
from stack_a.http.runs import idempotency_of, run_id_of

_RETRY: Final = "POST /v1/runs/{run_id}:retry"
_FORK: Final = "POST /v1/runs/{run_id}:fork"
_RESOLVE: Final = "POST /v1/runs/{run_id}:resolve"


@post("/v1/runs/{run_id:str}/:retry")
async def retry_run(request: HttpRequest, run_id: PathText, again: Again) -> Response[bytes]:
    found = exchange(request.scope)
    decoded(found.json, wire.RetryRun)
    created = await again.retry(found.identity, run_id_of(run_id), idempotency_of(found, _RETRY, run_id))
    return wire.json_response(wire.run_accepted(created.run, found.identity), status=202)


@post("/v1/runs/{run_id:str}/:fork")
async def fork_run(request: HttpRequest, run_id: PathText, again: Again) -> Response[bytes]:
    found = exchange(request.scope)
    body = decoded(found.json, wire.ForkRun)
    key = idempotency_of(found, _FORK, run_id)
    created = await again.fork(found.identity, run_id_of(run_id), body.from_step, key)
    return wire.json_response(wire.run_accepted(created.run, found.identity), status=202)


@post("/v1/runs/{run_id:str}/:resolve")
async def resolve_step(request: HttpRequest, run_id: PathText, again: Again) -> Response[bytes]:
    found = exchange(request.scope)
    body = decoded(found.json, wire.ResolveStep)
    resolution = wire.resolution_of(body)
    key = idempotency_of(found, _RESOLVE, run_id)
    run = await again.resolve(found.identity, run_id_of(run_id), body.step, resolution, key)
    return wire.json_response(wire.changed_view(run, found.identity))
