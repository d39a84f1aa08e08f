"""The edge: what happens to every HTTP request of every surface before and after its endpoint.

In this order: correlate, check the headers, match the route (deny by default), authenticate, authorize, require the
idempotency key, read the body within its limit and parse it strictly. Endpoints find the result in `exchange(scope)`.
An error raised here or in the endpoint becomes the envelope; responses carry the correlation id and `traceparent`.
"""

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from ports.auth import MAX_TOKEN_CHARS, TokenVerifier, mismatch
from ports.context import TENANT_ACT_AS, AuthContext, Trace
from ports.errors import (
    AgentOSError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from ports.http import envelope, strict_json
from ports.http.body import NO_BODY, Arriving, Disconnected, Receive, check_body_headers, read_body
from ports.http.extensions import (
    HEAD_MEMORY,
    NO_FIELDS,
    WHOLE_REQUEST,
    WHOLE_RESPONSE,
    Fields,
    HeadMemory,
    Turn,
    WholeResponse,
)
from ports.http.headers import Headers
from ports.http.repeats import Repeats
from ports.http.routes import DENIED, IDENTIFIED, LOOPBACK, PUBLIC, Route, RouteTable
from ports.http.trace import trace_from
from ports.messages import Json

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

EdgeApp: TypeAlias = Callable[[Scope, Receive, "Answering"], Awaitable[None]]
"""What is reached without a framework: it may answer as a whole."""

EXCHANGE: Final = "agentos.exchange"
UNMATCHED: Final = "unmatched"

_FORWARDED: Final = (b"forwarded", b"x-forwarded-", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-", b"via")
"""How the headers begin that proxies add."""
_STAMPS: Final = (b"x-correlation-id", b"x-request-id", b"traceparent", b"x-content-type-options", b"cache-control")
_WHOLE: Final = (b"content-type", b"content-length")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_OK: Final = 200
_NONE: Final[Mapping[str, Any]] = {}

logger = logging.getLogger("agentos.http")


class Exchange(Struct, kw_only=True):
    """What the edge found out about one request."""

    trace: Trace
    headers: Headers
    template: str = UNMATCHED
    auth: AuthContext | None = None
    idempotency_key: str | None = None
    json: Json = None
    """The parsed body of a POST, PUT or PATCH."""
    refusal: str | None = None
    """The code of the error it was answered with."""
    reauthorize: Callable[[], Awaitable[AuthContext]] | None = None
    """Verifies the caller's token and scope again, and raises when either no longer holds. For long streams."""

    @property
    def identity(self) -> AuthContext:
        """The caller. Only routes that need a scope have one."""
        assert self.auth is not None, f"{self.template} is public"
        return self.auth


class Opening:
    """What a request's head says by itself: the same for the next request with the same head."""

    __slots__ = (
        "beginning",
        "endpoint",
        "headers",
        "ids",
        "let_in",
        "path",
        "route",
        "says_json",
        "takes_body",
        "token",
    )

    def __init__(self, headers: Headers, route: Route, path: str, token: str, endpoint: "EdgeApp | None") -> None:
        """`path`: as the framework knows it. `token`: empty where the route needs none."""
        self.headers = headers
        self.ids = _ids_in(headers)
        self.route = route
        self.path = path
        self.token = token
        self.endpoint = endpoint
        self.beginning: Beginning | None = None
        """Of an endpoint that can begin without a task."""
        self.let_in: AuthContext | None = None
        """Who was authorized last, in their own tenant: as the verifier said it."""
        self.says_json = False
        """A body behind this head was taken, for what the head says it is."""
        self.takes_body = False
        """What the head says of the body was looked at, and may be."""


Observe: TypeAlias = Callable[[Exchange, str, int, float], None]
"""Called once per request with the exchange, the method, the status (499: client gone) and the seconds it took."""

MoreHeaders: TypeAlias = Callable[[Exchange], Fields]
"""What a surface adds to the headers of a response."""

Denied: TypeAlias = Callable[[AuthContext, str, PermissionDenied], Awaitable[None]]
"""Told of a known caller who may not, and at which template, before the caller is."""

Acted: TypeAlias = Callable[[AuthContext], Awaitable[None]]
"""Told of a caller in the tenant that it acts for."""

ExtraMembers: TypeAlias = Callable[[AgentOSError], Mapping[str, Any]]
"""What a surface adds inside `error`."""

BodyOf: TypeAlias = Callable[[AgentOSError, str], bytes]
"""The body of a refusal, from the error and the correlation id."""


def exchange(scope: Mapping[str, Any]) -> Exchange:
    found: Exchange = scope[EXCHANGE]
    return found


def no_extra(_: AgentOSError) -> Mapping[str, Any]:
    return {}


Admit: TypeAlias = Callable[[AuthContext], Awaitable[object]]
"""Asked once per request of a known caller, a denied one too; raises when it is one too many."""


async def no_word(_: AuthContext, __: str, ___: PermissionDenied) -> None:
    return None


async def nothing_acted(_: AuthContext) -> None:
    return None


def no_headers(_: Exchange) -> Fields:
    return NO_FIELDS


class Begun(Protocol):
    """An endpoint's request that has begun without a task."""

    under_way: bool
    """It has to wait, and says `AtHand.arrived` or `AtHand.cancel` when that is over."""

    def arrived(self) -> tuple[bytes, bytes] | None:
        """What was waited for is here. The media type and the body of its answer, or None where it is `rest`'s now.

        So it is where this raises: `rest` does again.
        """
        ...

    async def rest(self, scope: Scope, receive: Receive, send: "Answering", /) -> None:
        """What is left of it."""
        ...


Beginning: TypeAlias = "Callable[[Exchange, AtHand], Begun]"
"""Begins a request that the edge has let in, as far as nothing has to be waited for."""


class Edge:
    """ASGI middleware around a surface's framework. Between requests it remembers which denials were noted, nothing else.

    `endpoints`, by method and template, are reached without the framework; everything else of the edge is the same. They
    find the body in the exchange; what they receive is what comes after it (the disconnect). `beginnings` are those of them
    that can begin without a task.

    Without a `verifier` no route that needs a scope can be reached: for surfaces of public routes only.
    """

    def __init__(
        self,
        app: App,
        *,
        routes: RouteTable,
        verifier: TokenVerifier | None,
        observe: Observe,
        extra: ExtraMembers = no_extra,
        body: BodyOf | None = None,
        key_header: bytes | None = None,
        endpoints: Mapping[tuple[str, str], EdgeApp] | None = None,
        beginnings: Mapping[tuple[str, str], Beginning] | None = None,
        headers: MoreHeaders = no_headers,
        denied: Denied = no_word,
        admit: Admit | None = None,
        admit_denied: Admit | None = None,
        denied_inside: Denied = no_word,
        acted: Acted = nothing_acted,
        arriving: Arriving | None = None,
    ) -> None:
        """`denied` is told of callers who may not use the route, `denied_inside` of those whom the endpoint refuses, and
        `acted` of those who act for another tenant, before they do. `admit_denied` is for surfaces that count by themselves
        what they let in.

        `body` is for clients that expect another envelope; `key_header` for those that send their key there."""
        self._app = app
        self._endpoints = endpoints or {}
        self._beginnings = beginnings or {}
        assert not self._beginnings or admit is None, "whoever is asked about each request has to be waited for"
        self._at_hand: Callable[[str], AuthContext | None] | None = getattr(verifier, "at_hand", None)
        """Of verifiers that remember, see `ports.auth.Remembers`."""
        self._more_headers = headers
        self._denied = denied
        self._admit = admit
        self._admit_denied = admit_denied or admit
        self._repeats = Repeats()
        self._arriving = arriving or Arriving()
        self._denied_inside = denied_inside
        self._acted = acted
        self._routes = routes
        self._verifier = verifier
        self._observe = observe
        self._body = body or (lambda error, correlation_id: envelope.body_of(error, correlation_id, extra(error)))
        self._key_header = key_header
        self._credentials = (b"authorization",) if key_header is None else (b"authorization", key_header)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        extensions = scope.get("extensions") or _NONE
        memory = extensions.get(HEAD_MEMORY)
        opening: Opening | None = None if memory is None else memory.get(self)
        headers = Headers(scope["headers"]) if opening is None else opening.headers
        ids = _ids_in(headers) if opening is None else opening.ids
        found = scope[EXCHANGE] = Exchange(trace=trace_from(*ids), headers=headers)
        reply = Answering(extensions, send, found, self)
        await self.conducted(self._let_in(scope, receive, reply, opening, memory), reply, scope["method"], started)

    async def _let_in(
        self, scope: Scope, receive: Receive, send: "Answering", opening: Opening | None, memory: HeadMemory | None
    ) -> None:
        if opening is None:
            opening = self._opened(scope, send.found.headers, send.found)
        await self._serve(scope, receive, send, opening, memory)

    def at_once(self, turn: Turn) -> "AtHand | None":
        """The same for whoever is let in again behind the same head, without a task; None, and nothing done, for others."""
        opening: Opening | None = turn.memory.get(self)
        if opening is None or opening.beginning is None or opening.let_in is None or not opening.says_json:
            return None
        assert self._at_hand is not None, "only then is there a beginning"
        body = turn.body
        if not body or len(body) > opening.route.max_body_bytes or self._at_hand(opening.token) is not opening.let_in:
            return None
        started = time.perf_counter()
        try:
            json = strict_json.parse(bytes(body))
        except AgentOSError:
            return None
        if not isinstance(json, dict):
            return None
        turn.taken()
        trace = trace_from(*opening.ids)
        auth = opening.let_in.traced(trace)
        found = Exchange(trace=trace, headers=opening.headers, template=opening.route.template, auth=auth, json=json)
        begun = AtHand(self, turn, opening, found, started)
        begun.begin(opening.beginning)
        return begun

    async def conducted(self, work: Awaitable[None], reply: "Answering", method: str, started: float) -> None:
        """`work`, which answers by `reply`; what it raises is the answer. It is observed, whatever comes of it."""
        found = reply.found
        try:
            await work
        except Disconnected:
            pass
        except AgentOSError as error:
            await self._refuse(reply, await self._told(error, found, method), found)
        except Exception as error:
            refusal = _framework_refusal(error)
            if refusal is None:
                logger.exception("http.failed", extra={"route": found.template})
            if reply.status is not None:
                raise
            await self._refuse(reply, refusal or Internal(str(error)), found)
        finally:
            self._observe(found, method, reply.status or 499, time.perf_counter() - started)

    def _opened(self, scope: Scope, headers: Headers, found: Exchange) -> Opening:
        """What the head alone says. Raises for what it alone refuses, as far as that comes before who asks."""
        headers.check()
        if b"host" not in headers and scope.get("http_version", "1.1") == "1.1":
            raise InvalidArgument("HTTP/1.1 needs a Host header")
        route, path = self._match(scope, headers)
        found.template = route.template
        token = ""
        if route.access not in {PUBLIC, LOOPBACK}:
            if self._verifier is None:
                raise Unauthenticated("this surface takes no tokens")
            token = self._token(headers)
        opening = Opening(headers, route, path, token, self._endpoints.get((route.method, route.template)))
        if token and self._at_hand is not None and not scope["query_string"]:
            opening.beginning = self._beginnings.get((route.method, route.template))
        return opening

    def _take_body(self, opening: Opening, memory: HeadMemory | None) -> None:
        """Raises where the head says that it can't be taken. It is remembered only then.

        The next request behind the same head may have another length.
        """
        check_body_headers(opening.headers, opening.route.max_body_bytes)
        opening.takes_body = True
        if memory is not None:
            memory[self] = opening

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: "Answering",
        opening: Opening,
        memory: HeadMemory | None,
    ) -> None:
        found, headers, route = send.found, opening.headers, opening.route
        found.template = route.template
        if opening.token:
            found.auth = scope["auth"] = await self._caller(opening, found.trace)
            # Not of the exchange, which would hold itself: nothing of a request is left to the collector.
            found.reauthorize = self.reauthorized(opening, found)
            if self._admit is not None:
                await self._admit(found.auth)
        if route.query is not None and scope["query_string"]:
            _check_query(scope["query_string"], route.query)
        if route.mutation:
            found.idempotency_key = _idempotency_key(headers)
        raw: bytes | None = None
        if route.method in _WITH_BODY:
            if not opening.takes_body:
                self._take_body(opening, memory)
            whole = send.extensions.get(WHOLE_REQUEST)
            raw = None if whole is None else whole()
            if not raw or not opening.says_json or len(raw) > route.max_body_bytes:
                raw = await read_body(receive, headers, route.max_body_bytes, raw, self._arriving.of(found.auth))
                # `{}` may be no body at all, of which nothing is said.
                opening.says_json = opening.says_json or len(raw) > len(NO_BODY)
            found.json = strict_json.parse(raw)
            if not isinstance(found.json, dict):
                raise InvalidArgument("the body must be a JSON object", code="validation_failed")
        if opening.endpoint is not None:
            await opening.endpoint(scope, receive, send)
            return
        path = opening.path
        scope["path"], scope["raw_path"] = path, path.encode("utf-8", "surrogatepass")
        await self._app(scope, receive if raw is None else _replay(raw, receive), send)

    def _match(self, scope: Scope, headers: Headers) -> tuple[Route, str]:
        match = self._routes.match(scope["method"], scope["path"])
        if match is None:
            raise NotFound("there is nothing at this path")
        if isinstance(match, tuple):
            raise InvalidArgument(
                f"this path takes {', '.join(match)}", code="method_not_allowed", details={"allow": list(match)}
            )
        if match.route.access == LOOPBACK and not _from_loopback(scope, headers):
            raise NotFound("there is nothing at this path")
        return match.route, match.inner_path

    async def _caller(self, opening: Opening, trace: Trace) -> AuthContext:
        """Who asks, authenticated and authorized."""
        headers, route = opening.headers, opening.route
        assert self._verifier is not None, "without one there is no token"
        try:
            verified = await self._verifier.verify(opening.token)
        except PermissionDenied as error:
            if error.caller is not None:
                await self._denied(error.caller.traced(trace), route.template, error)
            raise
        auth = verified.traced(trace)
        if verified is opening.let_in:
            # The very same: what it may is what it might.
            return auth
        try:
            _authorize(auth, route)
            if b"x-tenant-id" not in headers or (named := headers.text(b"x-tenant-id") or "") == auth.tenant:
                opening.let_in = verified
                return auth
            if TENANT_ACT_AS not in auth.scopes:
                raise mismatch()
            acting = (await self._verifier.act_as(opening.token, named)).traced(trace)
            _authorize(acting, route)
        except PermissionDenied as error:
            await self._turned_away(auth, route, error)
            raise
        await self._acted(acting)
        return acting

    def reauthorized(self, opening: Opening, found: Exchange) -> Callable[[], Awaitable[AuthContext]]:
        return partial(self._caller, opening, found.trace)

    def answered(self, found: Exchange, method: str, started: float) -> None:
        """An endpoint's answer was sent."""
        self._observe(found, method, _OK, time.perf_counter() - started)

    def stamps(self, found: Exchange) -> Fields:
        """The headers that every response gets."""
        trace = found.trace
        correlation_id = trace.correlation_id.encode()
        names, values = self._more_headers(found)
        stamps = (correlation_id, correlation_id, trace.traceparent.encode(), b"nosniff", b"no-store")
        return _STAMPS + names, stamps + values

    async def _turned_away(self, auth: AuthContext, route: Route, error: PermissionDenied) -> None:
        """A request like any other: it is counted, and then noted."""
        if self._admit_denied is not None:
            await self._admit_denied(auth)
        if not self._repeats.is_one(auth, route.method, route.template, error):
            await self._denied(auth, route.template, error)
            self._repeats.noted(auth, route.method, route.template, error)

    def _token(self, headers: Headers) -> str:
        """Raises `Unauthenticated` where none was sent, or what can't be one."""
        sent = headers.text(b"authorization")
        if self._key_header is not None and self._key_header in headers:
            # A key in a header of its own is the same as a bearer's.
            key = f"Bearer {headers.text(self._key_header)}"
            if sent is not None and sent != key:
                raise InvalidArgument("two different keys were sent; send one of them, in one header")
            sent = key
        scheme, _, token = (sent or "").partition(" ")
        token = token.strip()
        if not token or scheme.lower() != "bearer":
            raise Unauthenticated("send a token: Authorization: Bearer …")
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("the token is not valid")
        return token

    async def _told(self, error: AgentOSError, found: Exchange, method: str) -> AgentOSError:
        """What to answer: `error`, or why nobody could be told of it."""
        # Without an identity it was told where the caller was turned away.
        auth = found.auth
        if (
            isinstance(error, PermissionDenied)
            and auth is not None
            and not self._repeats.is_one(auth, method, found.template, error)
        ):
            try:
                await self._denied_inside(auth, found.template, error)
                self._repeats.noted(auth, method, found.template, error)
            except AgentOSError as failed:
                return failed
        return error

    async def _refuse(self, send: "Answering", error: AgentOSError, found: Exchange) -> None:
        found.refusal = error.code
        if send.status is not None:
            # The response has begun: the status can't change any more. Its stream ends here.
            raise error
        extra = envelope.headers_of(error, token_sent=any(map(found.headers.get, self._credentials)))
        if error.code == "method_not_allowed":
            extra.append((b"allow", ", ".join(error.details.get("allow", [])).encode()))
        headers = [(b"content-type", b"application/json"), *extra]
        await send.whole(envelope.status_of(error), headers, self._body(error, found.trace.correlation_id))


class AtHand(Struct, eq=False):
    """A request without a task of its own for as long as it needs none. Satisfies `ports.http.extensions.AtOnce`."""

    _edge: Edge
    _turn: Turn
    _opening: Opening
    _found: Exchange
    _started: float
    under_way: bool = False
    _begun: Begun | None = None
    _error: Exception | None = None

    def begin(self, beginning: Beginning) -> None:
        try:
            begun = self._begun = beginning(self._found, self)
            self.under_way = begun.under_way
        except Exception as error:  # noqa: BLE001 - `rest` raises it, where it is told
            self._error = error

    def arrived(self) -> None:
        """What its endpoint has waited for is here. Who has a task by now finds it there."""
        if not self.under_way:
            return
        try:
            answered = self._answered()
        except Exception:  # noqa: BLE001 - `rest` meets it again, where it is told
            answered = False
        if answered:
            self._edge.answered(self._found, self._turn.scope["method"], self._started)
        else:
            self._turn.go_on()

    def _answered(self) -> bool:
        assert self._begun is not None, "it is under way"
        answer = self._begun.arrived()
        if answer is None:
            return False
        media_type, body = answer
        names, values = self._edge.stamps(self._found)
        return self._turn.whole(_OK, (_WHOLE + names, (media_type, b"%d" % len(body), *values)), body)

    def cancel(self) -> None:
        """It is not to wait any longer: what that means is `rest`'s to say, as of a task that is cancelled."""
        self._turn.go_on()

    def cancelling(self) -> int:
        return 0

    def uncancel(self) -> int:
        return 0

    async def rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge, found = self._edge, self._found
        scope[EXCHANGE], scope["auth"] = found, found.auth
        reply = Answering(scope.get("extensions") or _NONE, send, found, edge)
        await edge.conducted(self._rest(scope, receive, reply), reply, scope["method"], self._started)

    async def _rest(self, scope: Scope, receive: Receive, reply: "Answering") -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # It has this frame: nothing of a request is left to the collector.
                del error
        self._found.reauthorize = self._edge.reauthorized(self._opening, self._found)
        assert self._begun is not None, "nothing went wrong"
        await self._begun.rest(scope, receive, reply)


class Answering:
    """`send` that stamps every response and remembers its status."""

    __slots__ = ("_edge", "_send", "extensions", "found", "status")

    def __init__(self, extensions: Mapping[str, Any], send: Send, found: Exchange, edge: Edge) -> None:
        self.extensions = extensions
        self._send = send
        self.found = found
        self._edge = edge
        self.status: int | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *zip(*self._edge.stamps(self.found), strict=True)]
        await self._send(message)

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A response with `body`; `headers` are those beside its length."""
        self.status = status
        names, values = self._edge.stamps(self.found)
        names = (*(name for name, _ in headers), b"content-length", *names)
        values = (*(value for _, value in headers), b"%d" % len(body), *values)
        at_once: WholeResponse | None = self.extensions.get(WHOLE_RESPONSE)
        if at_once is not None and at_once(status, (names, values), body):
            return
        headers = list(zip(names, values, strict=True))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _ids_in(headers: Headers) -> tuple[str | None, str | None]:
    """What its trace goes on from."""
    return headers.text(b"x-correlation-id"), headers.text(b"traceparent")


def _authorize(auth: AuthContext, route: Route) -> None:
    """Raises `PermissionDenied`."""
    if route.access == DENIED:
        raise PermissionDenied("this route has no declared scope and is closed")
    if route.access != IDENTIFIED:
        auth.require(route.access)


def _check_query(raw: bytes, known: tuple[str, ...]) -> None:
    try:
        names = [name for name, _ in parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=100)]
    except ValueError:
        raise InvalidArgument("the query string is malformed") from None
    for name in names:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise InvalidArgument(f"unknown query parameter {name[:64]!r}; this path takes {takes}")
    if len(set(names)) != len(names):
        raise InvalidArgument("a query parameter was sent twice")


def _framework_refusal(error: Exception) -> AgentOSError | None:
    """What the framework refused by itself (a query parameter of the wrong type, say), in our words."""
    status = getattr(error, "status_code", 500)
    if status == 404:  # noqa: PLR2004 - HTTP's own numbers
        return NotFound("there is nothing at this path")
    if 400 <= status < 500:  # noqa: PLR2004 - HTTP's own numbers
        reasons = getattr(error, "extra", None)
        details = {"reasons": reasons} if isinstance(reasons, list) else {}
        return InvalidArgument("the request is not valid for this path", details=details)
    return None


def _idempotency_key(headers: Headers) -> str:
    key = headers.idempotency_key()
    if key is None:
        raise InvalidArgument(
            "this changes something: send an Idempotency-Key header, so that repeating it is safe",
            code="idempotency_key_required",
        )
    return key


def _replay(raw: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body already read, then what comes after (the disconnect)."""
    pending = [raw]

    async def replay() -> MutableMapping[str, Any]:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


def _from_loopback(scope: Scope, headers: Headers) -> bool:
    client = scope.get("client")
    if headers.any_of(_FORWARDED):
        # A proxy on this machine speaks for somebody elsewhere.
        return False
    # No client address means an in-process transport.
    return client is None or ipaddress.ip_address(client[0]).is_loopback


StructT = TypeVar("StructT", bound=Struct)


def decoded(value: Json, kind: type[StructT]) -> StructT:
    """The parsed body as `kind`.

    Raises:
        InvalidArgument: `validation_failed`, with the path of the member that is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        raise InvalidArgument(
            f"{path.strip('`') or '$'}: {reason}", code="validation_failed", details={"path": path.strip("`") or "$"}
        ) from None
