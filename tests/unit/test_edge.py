"""The edge around a minimal app: every request passes the same doors in the same order."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from conformance.people import ACME, ACME_BEN, GLOBEX
from ports.auth import mismatch
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable
from ports.http.body import Arriving, Receive
from ports.http.edge import Edge, Exchange, Scope, Send, exchange
from ports.http.repeats import MAX_REMEMBERED, NOTED_EVERY, Repeats
from ports.http.routes import LOOPBACK, PUBLIC, Route, RouteTable
from ports.ids import PrincipalId, TenantId

pytestmark = pytest.mark.anyio

ROUTES = RouteTable(
    (
        Route(method="GET", template="/open", access=PUBLIC),
        Route(method="GET", template="/local", access=LOOPBACK),
        Route(method="GET", template="/things", access="runs:read", query=("limit",)),
        Route(method="POST", template="/things", access="runs:create", mutation=True, max_body_bytes=100),
        Route(method="GET", template="/broken", access=PUBLIC),
        Route(method="GET", template="/raced", access=PUBLIC),
    )
).with_denied([("GET", "/forgotten")])

TOKENS = {
    "reader": frozenset({"runs:read"}),
    "writer": frozenset({"runs:create"}),
}


class Verifier:
    async def verify(self, token: str) -> AuthContext:
        if token == "store-down":
            raise Unavailable("the key store does not answer")
        if token == "disabled":
            denied = PermissionDenied("the tenant is disabled", code="tenant_disabled")
            denied.caller = AuthContext(tenant=TenantId("tnt_off"), principal=PrincipalId("usr_off"))
            raise denied
        if token not in TOKENS:
            raise Unauthenticated("the token is not valid")
        return AuthContext(tenant=TenantId("tnt_a"), principal=PrincipalId("usr_a"), scopes=TOKENS[token])

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


class Refused(Exception):
    """What a framework raises for a parameter it can't read."""

    status_code = 400


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/broken":
        raise RuntimeError("secret of the implementation")
    if scope["path"] == "/raced":
        raise Conflict("somebody was first")
    if scope["path"] == "/things" and b"limit=x" in scope["query_string"]:
        raise Refused
    if scope["method"] == "POST":
        message = await receive()
        assert message["body"]
    found = exchange(scope)
    seen = f"{found.auth.tenant if found.auth else '-'} {found.json}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": seen})


@pytest.fixture
def observed() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
async def client(observed: list[tuple[str, str, int]]) -> AsyncIterator[httpx.AsyncClient]:
    def observe(found: Exchange, method: str, status: int, _: float) -> None:
        observed.append((found.template, method, status))

    edge: Any = Edge(app, routes=ROUTES, verifier=Verifier(), observe=observe)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://node") as made:
        yield made


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", **more}


async def post(client: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    sent = bearer("writer", **{"content-type": "application/json", "idempotency-key": "k", **headers})
    return await client.post("/things", content=content, headers={k: v for k, v in sent.items() if v})


def code(response: httpx.Response) -> str:
    found: str = response.json()["error"]["code"]
    return found


async def test_a_public_route_needs_no_token_and_carries_the_correlation(client: httpx.AsyncClient) -> None:
    response = await client.get("/open", headers={"x-correlation-id": "mine"})

    assert response.status_code == 200
    assert response.headers["x-correlation-id"] == "mine"
    assert response.headers["traceparent"].startswith("00-")


@pytest.mark.parametrize(
    ("headers", "status", "expected"),
    [
        ({}, 401, "unauthenticated"),
        (bearer("forged"), 401, "unauthenticated"),
        ({"authorization": "Basic reader"}, 401, "unauthenticated"),
        (bearer("x" * 10_000), 401, "unauthenticated"),
        (bearer("disabled"), 403, "tenant_disabled"),
        (bearer("writer"), 403, "insufficient_scope"),
        (bearer("reader", **{"x-tenant-id": "tnt_b"}), 403, "tenant_mismatch"),
        (bearer("store-down"), 503, "unavailable"),
    ],
)
async def test_a_caller_without_the_right_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str], status: int, expected: str
) -> None:
    response = await client.get("/things", headers=headers)

    assert (response.status_code, code(response)) == (status, expected)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Unavailable("the store does not answer"), "2"),
        (Unavailable("the keys are fetched again in half a minute", retry_after=timedelta(seconds=30)), "30"),
        (Unavailable("at once", retry_after=timedelta(0)), "1"),
        (Unavailable("it can never be opened", retryable=False), None),
        (ResourceExhausted("too many at a time"), "2"),
        (ResourceExhausted("it is spent", code="budget_exceeded"), None),
        (Unavailable("the backend broke off", code="upstream_error"), None),
    ],
)
async def test_429_and_503_say_when_to_come_back_where_that_may_help(refusal: AgentOSError, told: str | None) -> None:
    async def refuses(*_: object) -> None:
        raise refusal

    edge: Any = Edge(refuses, routes=ROUTES, verifier=None, observe=lambda *_: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://node") as client:
        response = await client.get("/open")

    assert response.headers.get("retry-after") == told


async def test_401_says_how_to_authenticate(client: httpx.AsyncClient) -> None:
    without = await client.get("/things")
    with_bad = await client.get("/things", headers=bearer("forged"))

    assert without.headers["www-authenticate"] == "Bearer"
    assert with_bad.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_route_served_without_a_declared_scope_is_closed(client: httpx.AsyncClient) -> None:
    response = await client.get("/forgotten", headers=bearer("reader"))

    assert (response.status_code, code(response)) == (403, "insufficient_scope")


async def test_an_unknown_path_is_404_and_a_known_one_names_its_methods(client: httpx.AsyncClient) -> None:
    absent = await client.get("/nowhere")
    wrong_method = await client.delete("/things")

    assert (absent.status_code, code(absent)) == (404, "not_found")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "GET, POST")


async def test_a_mutation_needs_an_idempotency_key(client: httpx.AsyncClient) -> None:
    missing = await post(client, b"{}", **{"idempotency-key": ""})
    malformed = await post(client, b"{}", **{"idempotency-key": "k" * 256})

    assert (missing.status_code, code(missing)) == (400, "idempotency_key_required")
    assert (malformed.status_code, code(malformed)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("content", "headers", "status", "expected"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 422, "validation_failed"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
        (b'{"a":"' + b"x" * 100 + b'"}', {}, 413, "payload_too_large"),
    ],
)
async def test_a_body_we_do_not_take_is_refused(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int, expected: str
) -> None:
    response = await post(client, content, **headers)

    assert (response.status_code, code(response)) == (status, expected)


async def test_a_body_that_grows_past_the_limit_is_refused_without_an_announced_length(
    client: httpx.AsyncClient,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 10

    headers = bearer("writer", **{"content-type": "application/json", "idempotency-key": "k"})
    response = await client.post("/things", content=chunks(), headers=headers)

    assert code(response) == "payload_too_large"


class OfTwo(Verifier):
    """`other` is of another tenant."""

    async def verify(self, token: str) -> AuthContext:
        found = await super().verify("writer" if token == "other" else token)
        return replace(found, tenant=TenantId("tnt_b")) if token == "other" else found


async def test_a_tenants_bodies_on_their_way_hold_so_much_and_anothers_are_let_in() -> None:
    edge: Any = Edge(app, routes=ROUTES, verifier=OfTwo(), observe=lambda *_: None, arriving=Arriving(most=150))
    there, goes_on = asyncio.Event(), asyncio.Event()
    whole = b'{"a": "' + b"x" * 80 + b'"}'

    async def slow() -> AsyncIterator[bytes]:
        yield whole[:-1]
        there.set()
        await goes_on.wait()
        yield whole[-1:]

    headers = {"content-type": "application/json", "idempotency-key": "k"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://node") as client:
        first = asyncio.create_task(client.post("/things", content=slow(), headers=bearer("writer", **headers)))
        await there.wait()
        second = await client.post("/things", content=whole, headers=bearer("writer", **headers))
        others = await client.post("/things", content=whole, headers=bearer("other", **headers))
        goes_on.set()
        answers = [await first, await client.post("/things", content=whole, headers=bearer("writer", **headers))]

    assert (second.status_code, code(second), second.headers["retry-after"]) == (429, "concurrency_limited", "2")
    assert [others.status_code, *(answer.status_code for answer in answers)] == [200] * 3


@pytest.mark.parametrize(
    ("announced", "expected"),
    [("-1", "invalid_request"), ("1_0", "invalid_request"), ("9" * 5_000, "payload_too_large")],
)
async def test_a_content_length_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, announced: str, expected: str
) -> None:
    response = await post(client, b"{}", **{"content-length": announced})

    assert code(response) == expected


async def test_a_body_may_say_that_it_is_utf_8(client: httpx.AsyncClient) -> None:
    response = await post(client, b"{}", **{"content-type": 'application/json; charset="UTF-8"'})

    assert response.status_code == 200


async def test_a_transfer_encoding_other_than_chunked_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer reader", "transfer-encoding": "gzip, chunked"}

    response = await client.get("/things", headers=headers)

    assert (response.status_code, code(response)) == (400, "invalid_request")


async def test_a_body_we_take_reaches_the_endpoint_parsed_and_raw(client: httpx.AsyncClient) -> None:
    response = await post(client, b'{"a": 1}')

    assert response.text == "tnt_a {'a': 1}"


async def test_a_header_sent_twice_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/open", headers=[("x-tenant-id", "tnt_a"), ("x-tenant-id", "tnt_b")])

    assert (response.status_code, code(response)) == (400, "invalid_request")


@pytest.mark.parametrize("query", ["other=1", "limit=1&limit=2", "limit=x", "%ff=1&" * 200])
async def test_a_query_we_do_not_know_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/things?{query}", headers=bearer("reader"))

    assert (response.status_code, code(response)) == (400, "invalid_request")


async def test_an_error_of_the_endpoint_becomes_the_envelope(client: httpx.AsyncClient) -> None:
    response = await client.get("/raced", headers={"x-correlation-id": "mine"})

    assert response.status_code == 409
    assert response.json() == {
        "error": {
            "code": "conflict",
            "message": "somebody was first",
            "retryable": False,
            "details": {},
            "correlation_id": "mine",
        }
    }


async def test_a_defect_is_500_with_its_text_withheld(client: httpx.AsyncClient) -> None:
    response = await client.get("/broken")

    assert (response.status_code, code(response)) == (500, "internal")
    assert "secret" not in response.text


async def test_metrics_are_for_this_machine_only() -> None:
    edge: Any = Edge(app, routes=ROUTES, verifier=None, observe=lambda *_: None)

    async def status_from(address: str, **headers: str) -> int:
        transport = httpx.ASGITransport(edge, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as made:
            return (await made.get("/local", headers=headers)).status_code

    assert await status_from("127.0.0.1") == 200
    assert await status_from("192.0.2.1") == 404
    for name in ("x-forwarded-for", "x-forwarded-host", "forwarded", "via", "cf-connecting-ip"):
        assert await status_from("127.0.0.1", **{name: "192.0.2.1"}) == 404


async def test_every_request_is_observed_once_by_its_template(
    client: httpx.AsyncClient, observed: list[tuple[str, str, int]]
) -> None:
    await client.get("/open")
    await client.get("/nowhere")
    await client.get("/broken")

    assert observed == [("/open", "GET", 200), ("unmatched", "GET", 404), ("/broken", "GET", 500)]


async def test_who_is_denied_by_the_verifier_is_told_of_like_any_other() -> None:
    told: list[tuple[AuthContext, str, str]] = []

    async def denied(auth: AuthContext, template: str, error: PermissionDenied) -> None:
        told.append((auth, template, error.code))

    edge = Edge(app, routes=ROUTES, verifier=Verifier(), observe=lambda *_: None, denied=denied)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=edge), base_url="http://node.test") as client:
        answer = await client.get("/things", headers={"authorization": "Bearer disabled", "x-correlation-id": "c1"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tenant_disabled")
    [(auth, template, code)] = told
    assert (auth.tenant, auth.trace.correlation_id, template, code) == (
        "tnt_off",
        "c1",
        "/things",
        "tenant_disabled",
    )


async def test_a_denied_request_is_counted_before_it_is_noted() -> None:
    told: list[str] = []
    counted = 0

    async def denied(_: AuthContext, template: str, __: PermissionDenied) -> None:
        told.append(template)

    async def admit(_: AuthContext) -> None:
        nonlocal counted
        counted += 1
        if counted > 3:
            raise ResourceExhausted("too many requests")

    edge = Edge(app, routes=ROUTES, verifier=Verifier(), observe=lambda *_: None, denied=denied, admit=admit)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=edge), base_url="http://node.test") as client:
        found = [await client.get("/things", headers={"authorization": "Bearer writer"}) for _ in range(5)]

    assert [one.status_code for one in found] == [403, 403, 403, 429, 429]
    assert told == ["/things"], "the same denial is noted once a minute"


async def test_a_denial_inside_of_an_endpoint_is_noted_once_a_minute_and_told_each_time() -> None:
    told: list[str] = []

    async def denied(_: AuthContext, template: str, error: PermissionDenied) -> None:
        told.append(f"{template} {error.code}")
        if len(told) == 1:
            raise Unavailable("the audit does not answer")

    async def refusing(scope: Scope, _: Receive, __: Send) -> None:
        code = "policy_blocked" if scope["query_string"] else "tool_not_permitted"
        raise PermissionDenied("not this one", code=code)

    edge: Any = Edge(refusing, routes=ROUTES, verifier=Verifier(), observe=lambda *_: None, denied_inside=denied)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://node") as client:
        paths = ["/things"] * 4 + ["/things?limit=1"] * 2
        found = [await client.get(path, headers=bearer("reader")) for path in paths]

    # What could not be noted is noted the next time.
    assert [one.status_code for one in found] == [503, *[403] * 5]
    assert told == ["/things tool_not_permitted", "/things tool_not_permitted", "/things policy_blocked"]


def test_the_first_of_each_denial_is_noted_and_then_one_a_minute() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)
    error = PermissionDenied("no", code="insufficient_scope")
    others = [
        (ACME_BEN, "GET", "/a", error),
        (GLOBEX, "GET", "/a", error),
        (ACME, "POST", "/a", error),
        (ACME, "GET", "/b", error),
        (ACME, "GET", "/a", PermissionDenied("no", code="tenant_mismatch")),
    ]

    before = repeats.is_one(ACME, "GET", "/a", error)
    repeats.noted(ACME, "GET", "/a", error)
    after = [repeats.is_one(*one) for one in [(ACME, "GET", "/a", error), *others]]
    now = NOTED_EVERY.total_seconds()
    later = repeats.is_one(ACME, "GET", "/a", error)
    repeats.noted(ACME, "GET", "/a", error)
    for number in range(MAX_REMEMBERED):
        repeats.noted(ACME, "GET", f"/{number}", error)

    assert not before
    assert after == [True, *[False] * len(others)]
    assert not later
    assert not repeats.is_one(ACME, "GET", "/a", error), "what is too long ago makes room"
