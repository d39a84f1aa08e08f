"""The surfaces on which a model writes: each reads its dialect, and all go the one way through the pipeline and back."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from ports.errors import AgentOSError
from ports.http.edge import exchange
from ports.messages import Json
from stack_b.caller import Caller
from stack_b.canonical import ChatCall
from stack_b.deps import StackBDeps
from stack_b.http.chat_stream import ChatStream
from stack_b.http.parse import PREFERENCE, STEP_KEY, preferring, step_key
from stack_b.http.replies import asgi, json_reply, unless_gone
from stack_b.http.surfaces.chat import chat
from stack_b.http.surfaces.messages_in import counted, input_tokens, messages
from stack_b.http.surfaces.messages_wire import TokenCount
from stack_b.http.surfaces.responses_in import responses
from stack_b.http.surfaces.wire import Wire, told
from stack_b.limits import Limits
from stack_b.pipeline import Pipeline
from stack_b.steps import Steps

Asked: TypeAlias = Request[Any, Any, Any]  # Litestar's user, auth and state: the edge's exchange has them instead

Surface: TypeAlias = Callable[[dict[str, Json], Limits], tuple[ChatCall, Wire]]
"""From a request's body to the canonical call, and the way back for its answer."""

SURFACES: Final[Mapping[str, Surface]] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
}
"""Where a model is asked to write, in which dialect."""


def surface_routes(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> list[HTTPRouteHandler]:
    """Those, and what is asked about them without a call."""

    @post("/v1/messages/count_tokens", status_code=200)
    async def count_tokens(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        auth, call = found.identity, counted(found.json, deps.limits)
        await pipeline.check(auth, call)
        count = input_tokens(call)
        correlation_id = auth.trace.correlation_id
        return json_reply(
            TokenCount(input_tokens=count, estimated=True, tenant_id=auth.tenant, correlation_id=correlation_id)
        )

    surfaces = [_route(path, read, deps, pipeline, steps) for path, read in SURFACES.items()]
    return [*surfaces, count_tokens]


def _route(path: str, read: Surface, deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> HTTPRouteHandler:
    @post(path, status_code=200)
    async def complete(request: Asked) -> ASGIApp:
        found = exchange(request.scope)
        call, wire = read(found.json, deps.limits)
        call = preferring(call, request.headers.get(PREFERENCE))
        auth, sent = found.identity, request.headers.get(STEP_KEY)
        key = None if sent is None else step_key(sent)
        caller = Caller()
        if call.stream:
            return asgi(
                ChatStream(
                    pipeline.stream(auth, call, caller=caller) if key is None else steps.stream(auth, call, key),
                    wire=wire,
                    route=found.template,
                    auth=auth,
                    reauthorize=found.reauthorize,
                    deadline=deps.limits.deadline,
                    caller=caller,
                )
            )
        try:
            # A step goes on without its client; any other call has nobody left to pay for.
            answer = await (
                unless_gone(request.receive, pipeline.chat(auth, call, caller=caller), caller)
                if key is None
                else steps.chat(auth, call, key)
            )
        except AgentOSError as error:
            told(error, wire.names)
            raise
        return json_reply(wire.whole(answer))

    return complete
