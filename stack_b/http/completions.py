"""The surfaces on which a model writes: each reads its dialect, and all go the one way through the pipeline and back."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from ports.errors import AgentOSError
from ports.http.body import Disconnected, Receive
from ports.http.edge import Answering, AtHand, Exchange, Scope
from ports.messages import Json
from stack_b.at_once import Sent
from stack_b.caller import Caller, Gone
from stack_b.canonical import ChatCall
from stack_b.deps import StackBDeps
from stack_b.http.about import ABOUT
from stack_b.http.about import told as told_about
from stack_b.http.asked import Asked, Endpoint, Reply, asked_of, replied
from stack_b.http.chat_stream import ChatStream
from stack_b.http.once import ONCE, asked_once, client_of
from stack_b.http.parse import PREFERENCE, preferring
from stack_b.http.replies import json_reply, unless_gone
from stack_b.http.surfaces.chat import chat
from stack_b.http.surfaces.messages_in import counted, input_tokens, messages
from stack_b.http.surfaces.messages_wire import TokenCount
from stack_b.http.surfaces.responses_in import responses
from stack_b.http.surfaces.wire import Wire, told
from stack_b.limits import Limits
from stack_b.pipeline import Pipeline
from stack_b.steps import Steps, each

Surface: TypeAlias = Callable[[dict[str, Json], Limits], tuple[ChatCall, Wire]]
"""From a request's body to the canonical call, and the way back for its answer."""

SURFACES: Final[Mapping[str, Surface]] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
}
"""Where a model is asked to write, in which dialect."""
ABOUT_A_CALL: Final = frozenset({PREFERENCE, *ABOUT, *ONCE})
"""The headers that say something of it; most requests have none of them."""
_JSON: Final = b"application/json"


def surface_endpoints(deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> dict[str, Endpoint]:
    """Those, and what is asked about them without a call, by path."""

    async def count_tokens(asked: Asked) -> Reply:
        found = asked.exchange
        auth, call = found.identity, counted(found.json, deps.limits)
        await pipeline.check(auth, msgspec.structs.replace(call, route=found.template))
        count = input_tokens(call)
        correlation_id = auth.trace.correlation_id
        return json_reply(
            TokenCount(input_tokens=count, estimated=True, tenant_id=auth.tenant, correlation_id=correlation_id)
        )

    surfaces = {path: Completion(read, deps, pipeline, steps) for path, read in SURFACES.items()}
    return {**surfaces, "/v1/messages/count_tokens": count_tokens}


class Completion:
    """The endpoint of one surface."""

    def __init__(self, read: Surface, deps: StackBDeps, pipeline: Pipeline, steps: Steps) -> None:
        self._read = read
        self._limits = deps.limits
        self._pipeline = pipeline
        self._steps = steps

    async def __call__(self, asked: Asked) -> Reply:
        return await self.complete(asked, *self._call(asked.exchange))

    def begin(self, found: Exchange, work: AtHand) -> "Completing":
        """The same, without a task for as long as none is needed. Raises what can't be read."""
        call, wire = self._call(found)
        sent = None
        if call.plain is not None and not call.stream and ABOUT_A_CALL.isdisjoint(found.headers):
            sent = self._pipeline.at_once(found.identity, call, work)
        return Completing(self, call, wire, sent, sent is not None)

    def arrived(self, sent: Sent) -> dict[str, Json] | None:
        return self._pipeline.arrived(sent)

    def _call(self, found: Exchange) -> tuple[ChatCall, Wire]:
        call, wire = self._read(found.json, self._limits)
        # Of a call that nobody else has seen yet.
        msgspec.structs.force_setattr(call, "route", found.template)
        return call, wire

    async def complete(self, asked: Asked, call: ChatCall, wire: Wire, sent: Sent | None = None) -> Reply:
        found = asked.exchange
        auth, client, once = found.identity, None, None
        if not ABOUT_A_CALL.isdisjoint(found.headers):
            call = told_about(preferring(call, found.headers.text(PREFERENCE)), found.headers)
            client = client_of(found.headers)
            once = asked_once(found.headers, auth, call, client)
        pipeline, steps = self._pipeline, self._steps
        flight = steps.flight(auth, call, client) if once is None and client is not None else None
        caller = Caller() if sent is None else sent.ready.caller
        if call.stream:
            return ChatStream(
                (lambda show: pipeline.stream(auth, call, show, caller=caller))
                if once is None
                else (lambda show: each(steps.stream(auth, call, once), show)),
                wire=wire,
                route=found.template,
                auth=auth,
                reauthorize=found.reauthorize,
                deadlines=pipeline.stream_deadlines,
                caller=caller,
                flight=flight,
            )
        try:
            # Under a key it goes on without its client; any other call has nobody left to pay for.
            if once is not None:
                answer = await steps.whole(auth, call, once)
            elif flight is not None or asked.on_disconnect is None:
                assert sent is None, "whoever begins without a task tells when its client leaves"
                answer = await unless_gone(asked, pipeline.chat(auth, call, caller=caller), caller, flight)
            else:
                # As mostly: the same without a block of its own.
                asked.on_disconnect(caller.leave)
                answer = await (pipeline.chat(auth, call, caller=caller) if sent is None else pipeline.going_on(sent))
        except Gone:
            raise Disconnected from None
        except AgentOSError as error:
            told(error, wire.names)
            raise
        return json_reply(wire.whole(answer))


class Completing(Struct, eq=False):
    """One of its requests. Satisfies `ports.http.edge.Begun`."""

    _completion: Completion
    _call: ChatCall
    _wire: Wire
    _sent: Sent | None
    under_way: bool
    _answer: dict[str, Json] | None = None

    def arrived(self) -> tuple[bytes, bytes] | None:
        assert self._sent is not None, "else nothing is under way"
        answer = self._answer = self._completion.arrived(self._sent)
        return None if answer is None else (_JSON, msgspec.json.encode(self._wire.whole(answer)))

    async def rest(self, scope: Scope, receive: Receive, send: Answering) -> None:
        await replied(self._replied(asked_of(scope, receive, send)), scope, receive, send)

    async def _replied(self, asked: Asked) -> Reply:
        if self._answer is not None:
            # It is there and paid, and whoever reads it is slow.
            return json_reply(self._wire.whole(self._answer))
        return await self._completion.complete(asked, self._call, self._wire, self._sent)
