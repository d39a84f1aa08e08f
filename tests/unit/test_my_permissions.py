"""What a caller learns of its own rights is what the door goes by."""

from collections.abc import AsyncIterator

import pytest

from tests.support.stack_a import StackA, stack_a

pytestmark = pytest.mark.anyio

RESOLVE = "/v1/runs/{run_id}:resolve"


@pytest.fixture
async def node() -> AsyncIterator[StackA]:
    async with stack_a() as made:
        yield made


async def test_a_caller_is_told_who_it_is_and_which_routes_are_open_to_it(node: StackA) -> None:
    answers = {who: (await node.get("/v1/me/permissions", who)).json() for who in ("acme", "eve")}

    resolving = {
        who: next(route for route in body["routes"] if route["path"] == RESOLVE) for who, body in answers.items()
    }
    assert answers["acme"]["tenant_id"] == "tnt_acme"
    assert {who: route["allowed"] for who, route in resolving.items()} == {"acme": False, "eve": True}
    assert resolving["acme"]["required_scope"] == "approvals:decide"


async def test_what_is_said_to_be_closed_answers_403_with_the_scope_that_is_missing(node: StackA) -> None:
    refused = await node.http.post(
        "/v1/runs/run_" + "0" * 32 + ":resolve", headers=node.headers("acme", **{"idempotency-key": "k"}), json={}
    )

    assert refused.status_code == 403
    assert refused.json()["error"]["details"] == {"required_scope": "approvals:decide"}


async def test_it_needs_a_valid_token(node: StackA) -> None:
    assert (await node.http.get("/v1/me/permissions")).status_code == 401
    assert (await node.get("/v1/me/permissions", "nobody")).status_code == 401
