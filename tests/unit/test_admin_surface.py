"""The admin API: who gets in, and what becomes of the gateway's configuration there."""

import json
from typing import Any

import httpx
import pytest
from litestar import Response, get

from deploy.admin_surface import OWN_ROUTES, Part
from ports.errors import InvalidArgument
from ports.gateway_configuration import MAX_DOCUMENT_BYTES
from ports.http.limits import COMMON
from ports.http.routes import LOOPBACK, PUBLIC
from stack_b.backends.settings import BackendSettings
from stack_b.diagnosis import NodeFacts
from stack_b.http.admin import CURRENT, ROUTES, VERSIONS
from tests.support.admin import admin

pytestmark = [pytest.mark.anyio]

ONE: dict[str, Any] = {
    "backends": [{"name": "one", "base_url": "http://127.0.0.1:1/v1", "models": [{"id": "m-1"}]}],
    "routing": {"aliases": {"fast": "m-1"}},
}
TWO: dict[str, Any] = {**ONE, "routing": {"aliases": {"fast": "m-1", "cheap": "m-1"}}}
MUTATIONS = [route for route in ROUTES if route.mutation]


def path_of(template: str) -> str:
    return template.replace("{version}", "1")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# The edge, for every route.


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
async def test_every_route_asks_who_it_is_and_for_the_platforms_scope(route: Any) -> None:
    async with admin() as surface:
        body: dict[str, Any] | None = None if route.method == "GET" else {}
        answers = {who: await surface.send(route.method, path_of(route.template), body, who=who)
                   for who in ("", "nobody", "user", "tenant_admin")}  # fmt: skip

    assert {who: code(answer) for who, answer in answers.items()} == {
        "": (401, "unauthenticated"),
        "nobody": (401, "unauthenticated"),
        "user": (403, "insufficient_scope"),
        "tenant_admin": (403, "insufficient_scope"),
    }
    assert route.access == "admin:platform"


@pytest.mark.parametrize("route", MUTATIONS, ids=lambda route: f"{route.method} {route.template}")
async def test_every_change_needs_an_idempotency_key(route: Any) -> None:
    async with admin() as surface:
        headers = {"authorization": "Bearer platform", "if-match": "*"}
        answer = await surface.http.request(route.method, path_of(route.template), json={}, headers=headers)

    assert code(answer) == (400, "idempotency_key_required")


async def test_nothing_but_health_and_the_document_is_open() -> None:
    assert {route.template for route in OWN_ROUTES if route.access == PUBLIC} == {
        "/healthz", "/readyz", "/openapi.json",
    }  # fmt: skip
    assert [route.template for route in OWN_ROUTES if route.access == LOOPBACK] == ["/metrics"]


async def test_a_route_that_a_part_serves_and_does_not_declare_is_closed() -> None:
    @get("/v1/admin/forgotten")
    async def forgotten() -> Response[str]:
        return Response("secret")

    async with admin(more=[Part(routes=(), operations={}, limits={}, handlers=[forgotten])]) as surface:
        answer = await surface.send("GET", "/v1/admin/forgotten")

    assert code(answer) == (403, "insufficient_scope")


async def test_what_is_not_there_is_not_found_and_other_methods_are_named() -> None:
    async with admin() as surface:
        absent = await surface.send("GET", "/v1/admin/nothing")
        method = await surface.send("DELETE", CURRENT)

    assert code(absent) == (404, "not_found")
    assert (code(method), method.headers["allow"]) == ((405, "method_not_allowed"), "GET, PUT")


async def test_the_surface_describes_itself_and_says_that_it_is_ready() -> None:
    async with admin() as surface:
        document = (await surface.http.get("/openapi.json")).json()
        ready = await surface.http.get("/readyz")
        health = await surface.http.get("/healthz")
        metrics = await surface.http.get("/metrics")

    assert document["paths"][CURRENT]["put"]["security"] == [{"bearer": ["admin:platform"]}]
    assert document["info"]["x-agentos-limits"]["max_gateway_configuration_bytes"] == MAX_DOCUMENT_BYTES
    assert document["info"]["x-agentos-limits"].items() >= COMMON.items()
    assert ready.json() == {"status": "ok", "dependencies": {"database": "ok"}}
    assert (health.json(), metrics.status_code) == ({"status": "ok"}, 200)


# The gateway's configuration.


async def test_at_first_there_is_version_zero_and_it_can_be_changed() -> None:
    async with admin() as surface:
        nothing = await surface.send("GET", CURRENT)
        made = await surface.put(ONE, if_match=nothing.headers["etag"], comment="the first")
        found = await surface.send("GET", CURRENT)

    assert (nothing.json()["version"], nothing.json()["document"], nothing.headers["etag"]) == (0, {}, '"0"')
    assert (made.status_code, made.headers["etag"]) == (200, '"1"')
    assert found.json()["document"] == ONE
    assert {"comment": "the first", "created_by": "usr_operator", "newest": True}.items() <= found.json().items()
    assert found.json()["tenant_id"] == "tnt_node"


async def test_a_change_of_what_was_not_looked_at_is_refused() -> None:
    async with admin() as surface:
        await surface.put(ONE)
        stale = await surface.put(TWO, if_match='"0"')
        blind = await surface.send("PUT", CURRENT, {"document": TWO})
        odd = [await surface.put(TWO, if_match=text) for text in ("1", 'W/"1"', '"1", "2"', '"01"', '""', '"1e9"')]
        found = (await surface.send("GET", CURRENT)).json()

    assert (code(stale), stale.json()["error"]["details"]) == ((409, "conflict"), {"current": 1})
    assert code(blind) == (400, "invalid_request")
    assert [code(answer) for answer in odd] == [(400, "invalid_request")] * 6
    assert found["version"] == 1


async def test_repeating_a_change_gives_the_same_answer_and_changes_nothing() -> None:
    async with admin() as surface:
        first = await surface.put(ONE, if_match='"0"', idempotency_key="k")
        again = await surface.put(ONE, if_match='"0"', idempotency_key="k")
        other = await surface.put(TWO, if_match='"1"', idempotency_key="k")
        back = [await surface.send("POST", f"{VERSIONS}/1:activate", {}, idempotency_key="b") for _ in range(2)]

    said = [{**answer.json(), "correlation_id": ""} for answer in (first, again)]
    assert said[0] == said[1]
    assert code(other) == (422, "idempotency_key_reused")
    assert [answer.json()["version"] for answer in back] == [2, 2]


async def test_going_back_adds_a_version_that_says_the_same() -> None:
    async with admin() as surface:
        await surface.put(ONE)
        await surface.put(TWO)
        back = await surface.send("POST", f"{VERSIONS}/1:activate", {"comment": "2 was slow"}, if_match='"2"')
        stale = await surface.send("POST", f"{VERSIONS}/1:activate", {}, if_match='"2"')
        absent = [await surface.send("POST", f"{VERSIONS}/{n}:activate", {}) for n in ("9", "0", "x", "1" * 30)]
        old = (await surface.send("GET", f"{VERSIONS}/2")).json()

    assert {"version": 3, "restores": 1, "comment": "2 was slow", "document": ONE}.items() <= back.json().items()
    assert code(stale) == (409, "conflict")
    assert [code(answer) for answer in absent] == [(404, "not_found")] * 4
    assert (old["newest"], old["document"]) == (False, TWO)


async def test_the_history_is_newest_first_in_pages() -> None:
    async with admin() as surface:
        for comment in "abc":
            await surface.put(ONE, comment=comment)
        first = (await surface.send("GET", f"{VERSIONS}?limit=2")).json()
        second = (await surface.send("GET", f"{VERSIONS}?limit=2&cursor={first['next_cursor']}")).json()
        wrong = [await surface.send("GET", f"{VERSIONS}?{query}") for query in ("limit=0", "cursor=x", "page=2")]

    assert [(one["version"], one["comment"]) for one in (*first["items"], *second["items"])] == [
        (3, "c"), (2, "b"), (1, "a"),
    ]  # fmt: skip
    assert second["next_cursor"] is None
    assert not any("document" in one for one in first["items"])
    assert [answer.status_code for answer in wrong] == [400] * 3


async def test_a_dry_run_says_all_that_is_wrong_and_changes_nothing() -> None:
    broken = {
        "backends": [
            {"name": "one", "base_url": "ftp://x", "api_key": "sk-very-secret"},
            {"name": "one", "base_url": "http://127.0.0.1:1/v1"},
        ],
        "routing": {"aliases": {"a": "b", "b": "m"}},
        "prices": [{"model": "m", "valid_from": "2026-01-01T00:00:00Z", "prompt": "cheap"}],
        "policies": {"house": {"rules": [{"id": "r", "effect": "deny", "on": ["call"]}]}},
    }
    async with admin() as surface:
        await surface.put(ONE)
        plan = await surface.plan(broken)
        real = await surface.put(broken)
        found = (await surface.send("GET", CURRENT)).json()

    assert plan["usable"] is False
    assert {(one["code"], one["path"]) for one in plan["diagnostics"]} == {
        ("backend", "$.backends[0]"),
        ("secret_in_plain", "$.backends[0].api_key"),
        ("duplicate_name", "$.backends[1].name"),
        ("routing", "$.routing.aliases.a"),
        ("price", "$.prices[0]"),
        ("policy", "$.policies.house"),
    }
    assert code(real) == (422, "validation_failed")
    assert real.json()["error"]["details"]["diagnostics"] == plan["diagnostics"]
    assert found["version"] == 1
    assert "very-secret" not in json.dumps(plan["diagnostics"]) + real.text


async def test_a_dry_run_says_what_would_change() -> None:
    after = {
        "backends": [
            {"name": "two", "base_url": "http://127.0.0.1:2/v1", "models": [{"id": "m-1"}]},
            {**ONE["backends"][0], "timeout_s": 5},
        ],
        "routing": {"aliases": {}},
    }
    async with admin() as surface:
        await surface.put(ONE)
        plan = await surface.plan(after)
        same = await surface.plan(ONE)

    assert (plan["usable"], plan["dry_run"], plan["current_version"]) == (True, True, 1)
    assert [(one["change"], one["path"]) for one in plan["diff"]] == [
        ("added", "$.backends[one].timeout_s"),
        ("added", "$.backends[two]"),
        ("removed", "$.routing.aliases.fast"),
    ]
    assert same["diff"] == []


@pytest.mark.parametrize(
    "body",
    [
        {}, {"document": []}, {"document": "x"}, {"document": ONE, "more": 1}, {"document": ONE, "comment": 1},
        {"document": ONE, "comment": "c" * 501}, {"document": {"backends": {}}}, {"document": {"x": [[[[]]]]}},
        {"document": {"backends": [None, 1, {"name": "\u0000"}]}},
    ],
)  # fmt: skip
async def test_what_is_no_configuration_is_the_senders_mistake(body: Any) -> None:
    async with admin() as surface:
        answer = await surface.send("PUT", CURRENT, body, if_match="*")
        planned = await surface.send("PUT", CURRENT + "?dry_run=true", body)
        odd = await surface.send("PUT", CURRENT + "?dry_run=yes", body)

    assert answer.status_code == 422
    assert planned.status_code in {200, 422}
    assert odd.status_code in {400, 422}


async def test_a_document_that_is_too_large_is_refused() -> None:
    async with admin() as surface:
        large = {"routing": {"spread": ["m" * 100] * (MAX_DOCUMENT_BYTES // 100)}}
        kept = await surface.put(large)
        refused = await surface.put({"routing": {"spread": ["m" * 100] * (MAX_DOCUMENT_BYTES // 50)}})

    assert code(kept) == (400, "invalid_request")
    assert code(refused) == (413, "payload_too_large")


async def test_a_configuration_must_get_along_with_the_rest_of_the_node() -> None:
    def only_known(reference: str) -> None:
        if reference != "env:KNOWN":
            raise InvalidArgument("there is nothing there; set it")

    beside = (BackendSettings(name="beside", base_url="http://127.0.0.1:1/v1"),)
    facts = NodeFacts(beside=beside, prod=True, check_secret=only_known)
    document = {
        "backends": [
            {"name": "beside", "base_url": "http://127.0.0.1:1/v1", "api_key": "env:KNOWN"},
            {"name": "two", "base_url": "http://127.0.0.1:1/v1", "api_key": "env:UNKNOWN"},
            {"name": "demo", "kind": "demo"},
        ]
    }
    async with admin(facts) as surface:
        plan = await surface.plan(document)

    assert {(one["code"], one["path"], one["hint"] != "") for one in plan["diagnostics"]} == {
        ("duplicate_name", "$.backends[0].name", True),
        ("secret", "$.backends[1].api_key", True),
        ("demo_in_prod", "$.backends[2].kind", True),
    }


async def test_where_a_file_goes_before_the_store_every_answer_says_so() -> None:
    async with admin(overridden_by="the file x") as surface:
        made = await surface.put(ONE)

    assert made.json()["overridden_by"] == "the file x"
