"""The edge: what happens to every HTTP request of every surface before and after its endpoint.

In this order: correlate, check the headers, match the route (deny by default), authenticate, authorize, require the
idempotency key, read the body within its limit and parse it strictly. Endpoints find the result in `exchange(scope)`.
An error raised here or in the endpoint becomes the envelope; responses carry the correlation id and `traceparent`.
"""

import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from ports.auth import MAX_TOKEN_CHARS, TokenVerifier
from ports.context import AuthContext, Trace
from ports.errors import (
    AgentOSError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from ports.http import envelope, strict_json
from ports.http.routes import DENIED, LOOPBACK, PUBLIC, Route, RouteTable
from ports.http.trace import trace_from
from ports.messages import Json

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE: Final = "agentos.exchange"
UNMATCHED: Final = "unmatched"

_SINGLETONS: Final = frozenset(
    {
        b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key", b"if-match", b"last-event-id",
        b"traceparent", b"transfer-encoding", b"x-api-key", b"x-correlation-id", b"x-step-key", b"x-tenant-id",
    }
)  # fmt: skip
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")
_FORWARDED: Final = (b"forwarded", b"x-forwarded-", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-", b"via")
"""How the headers begin that proxies add."""
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_CONTENT_LENGTH_CHARS: Final = 18

logger = logging.getLogger("agentos.http")


class Disconnected(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Exchange(Struct, kw_only=True):
    """What the edge found out about one request."""

    trace: Trace
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


Observe: TypeAlias = Callable[[Exchange, str, int, float], None]
"""Called once per request with the exchange, the method, the status (499: client gone) and the seconds it took."""

ExtraMembers: TypeAlias = Callable[[AgentOSError], Mapping[str, Any]]
"""What a surface adds inside `error`."""

BodyOf: TypeAlias = Callable[[AgentOSError, str], bytes]
"""The body of a refusal, from the error and the correlation id."""


def exchange(scope: Mapping[str, Any]) -> Exchange:
    found: Exchange = scope[EXCHANGE]
    return found


def no_extra(_: AgentOSError) -> Mapping[str, Any]:
    return {}


class Edge:
    """ASGI middleware around a surface's framework. Holds no state between requests.

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
    ) -> None:
        """`body` is for clients that expect another envelope; `key_header` for those that send their key there."""
        self._app = app
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
        headers = _Headers(scope["headers"])
        found = Exchange(trace=trace_from(headers.get(b"x-correlation-id"), headers.get(b"traceparent")))
        scope[EXCHANGE] = found
        reply = _Reply(send, found.trace)
        try:
            await self._serve(scope, receive, reply, headers, found)
        except Disconnected:
            pass
        except AgentOSError as error:
            await self._refuse(reply, error, headers, found)
        except Exception as error:
            refusal = _framework_refusal(error)
            if refusal is None:
                logger.exception("http.failed", extra={"route": found.template})
            if reply.status is not None:
                raise
            await self._refuse(reply, refusal or Internal(str(error)), headers, found)
        finally:
            self._observe(found, scope["method"], reply.status or 499, time.perf_counter() - started)

    async def _serve(
        self, scope: Scope, receive: Receive, send: "_Reply", headers: "_Headers", found: Exchange
    ) -> None:
        headers.check()
        if scope.get("http_version", "1.1") == "1.1" and headers.get(b"host") is None:
            raise InvalidArgument("HTTP/1.1 needs a Host header")
        route, scope["path"] = self._match(scope, headers)
        scope["raw_path"] = scope["path"].encode("utf-8", "surrogatepass")
        found.template = route.template
        if route.access not in {PUBLIC, LOOPBACK}:

            async def authorized() -> AuthContext:
                auth = await self._authenticate(headers)
                self._authorize(auth, route, headers)
                return auth

            found.auth = scope["auth"] = (await authorized()).traced(found.trace)
            found.reauthorize = authorized
        if route.query is not None:
            _check_query(scope["query_string"], route.query)
        if route.mutation:
            found.idempotency_key = _idempotency_key(headers)
        if route.method in _WITH_BODY:
            raw = await _body(receive, headers, route.max_body_bytes)
            found.json = strict_json.parse(raw)
            if not isinstance(found.json, dict):
                raise InvalidArgument("the body must be a JSON object", code="validation_failed")
            receive = _replay(raw, receive)
        await self._app(scope, receive, send)

    def _match(self, scope: Scope, headers: "_Headers") -> tuple[Route, str]:
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

    def _token(self, headers: "_Headers") -> str | None:
        """The caller's `Authorization`; a key in a header of its own is the same as a bearer's."""
        sent = headers.get(b"authorization")
        key = None if self._key_header is None else headers.get(self._key_header)
        if sent is not None and key is not None and sent != f"Bearer {key}":
            raise InvalidArgument("two different keys were sent; send one of them, in one header")
        return sent if key is None else f"Bearer {key}"

    async def _authenticate(self, headers: "_Headers") -> AuthContext:
        if self._verifier is None:
            raise Unauthenticated("this surface takes no tokens")
        scheme, _, token = (self._token(headers) or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("send a token: Authorization: Bearer …")
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated("the token is not valid")
        return await self._verifier.verify(token.strip())

    @staticmethod
    def _authorize(auth: AuthContext, route: Route, headers: "_Headers") -> None:
        if route.access == DENIED:
            raise PermissionDenied("this route has no declared scope and is closed")
        auth.require(route.access)
        named = headers.get(b"x-tenant-id")
        if named is not None and named != auth.tenant:
            raise PermissionDenied("X-Tenant-Id differs from the token's tenant", code="tenant_mismatch")

    async def _refuse(self, send: "_Reply", error: AgentOSError, headers: "_Headers", found: Exchange) -> None:
        found.refusal = error.code
        if send.status is not None:
            # The response has begun: the status can't change any more. Its stream ends here.
            raise error
        extra = envelope.headers_of(error, token_sent=any(map(headers.get, self._credentials)))
        if error.code == "method_not_allowed":
            extra.append((b"allow", ", ".join(error.details.get("allow", [])).encode()))
        body = self._body(error, send.trace.correlation_id)
        start = {
            "type": "http.response.start",
            "status": envelope.status_of(error),
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *extra,
            ],
        }
        await send(start)
        await send({"type": "http.response.body", "body": body})


class _Headers:
    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._first: dict[bytes, bytes] = {}
        for name, value in raw:
            self._first.setdefault(name, value)

    def get(self, name: bytes) -> str | None:
        value = self._first.get(name)
        return None if value is None else value.decode("latin-1")

    def any_of(self, beginnings: tuple[bytes, ...]) -> bool:
        return any(name.startswith(beginnings) for name in self._first)

    def check(self) -> None:
        seen: set[bytes] = set()
        for name, _ in self._raw:
            if name in seen and name in _SINGLETONS:
                raise InvalidArgument(f"the header {name.decode('latin-1')!r} was sent twice")
            seen.add(name)
        if b"content-length" in seen and b"transfer-encoding" in seen:
            raise InvalidArgument("send Content-Length or Transfer-Encoding, not both")
        if self._first.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise InvalidArgument("the only Transfer-Encoding taken is chunked")


class _Reply:
    """`send` that stamps every response and remembers its status."""

    def __init__(self, send: Send, trace: Trace) -> None:
        self._send = send
        self.trace = trace
        self.status: int | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-correlation-id", self.trace.correlation_id.encode()),
                (b"x-request-id", self.trace.correlation_id.encode()),
                (b"traceparent", self.trace.traceparent.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
        await self._send(message)


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


def _idempotency_key(headers: _Headers) -> str:
    key = headers.get(b"idempotency-key")
    if key is None:
        raise InvalidArgument(
            "this changes something: send an Idempotency-Key header, so that repeating it is safe",
            code="idempotency_key_required",
        )
    if _PRINTABLE.fullmatch(key) is None:
        raise InvalidArgument("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


async def _body(receive: Receive, headers: _Headers, limit: int) -> bytes:
    if headers.get(b"content-encoding") is not None:
        raise InvalidArgument("Content-Encoding is not taken on requests", code="unsupported_media_type")
    media, _, parameters = (headers.get(b"content-type") or "").lower().partition(";")
    announced = headers.get(b"content-length")
    if announced is not None:
        if not (announced.isascii() and announced.isdigit()):
            raise InvalidArgument("Content-Length must be a number")
        # By its length first: a number of a million digits takes long to read.
        if len(announced) > _CONTENT_LENGTH_CHARS or int(announced) > limit:
            raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        more = message.get("more_body", False)
    raw = b"".join(chunks)
    if not raw:
        # Verbs such as `:cancel` take an optional body.
        return b"{}"
    if media.strip() != "application/json" or parameters.replace('"', "").strip() not in {"", "charset=utf-8"}:
        raise InvalidArgument("send the body as application/json, in UTF-8", code="unsupported_media_type")
    return raw


def _too_large(limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"the body is larger than {limit} bytes", code="payload_too_large", details={"max_body_bytes": limit}
    )


def _replay(raw: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body already read, then what comes after (the disconnect)."""
    pending = [raw]

    async def replay() -> MutableMapping[str, Any]:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


def _from_loopback(scope: Scope, headers: _Headers) -> bool:
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
