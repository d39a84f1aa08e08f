"""The OpenAPI assembly that every surface shares."""

import msgspec
import pytest
from msgspec import Struct

from ports.http.openapi import Operation, Parameter, document
from ports.http.routes import PUBLIC, Route, RouteTable


class _Order(Struct, frozen=True, kw_only=True):
    dish: str


class _Meal(Struct, frozen=True, kw_only=True):
    order: _Order
    id: str


ROUTES = RouteTable(
    [
        Route(method="POST", template="/v1/meals/{meal_id}:cancel", access="runs:cancel", mutation=True),
        Route(method="GET", template="/v1/meals", access="runs:read"),
        Route(method="GET", template="/healthz", access=PUBLIC),
    ]
)
OPERATIONS = {
    ("POST", "/v1/meals/{meal_id}:cancel"): Operation(summary="Cancel", request=_Order, response=_Meal, status=202),
    ("GET", "/v1/meals"): Operation(
        summary="List", response=list[_Meal], parameters=(Parameter(name="limit", description="page size"),)
    ),
    ("GET", "/healthz"): Operation(summary="Health", media_type="text/plain"),
}


def _document() -> dict[str, object]:
    made = document(
        title="Kitchen", description="", version="1", routes=ROUTES, operations=OPERATIONS, limits={"dishes": 3}
    )
    decoded: dict[str, object] = msgspec.json.decode(msgspec.json.encode(made))
    return decoded


def test_schemas_are_shared_by_reference() -> None:
    made = msgspec.to_builtins(_document())

    cancel = made["paths"]["/v1/meals/{meal_id}:cancel"]["post"]
    assert cancel["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/_Order"}
    assert cancel["responses"]["202"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/_Meal"}
    assert {"_Order", "_Meal", "Error"} <= made["components"]["schemas"].keys()
    assert made["info"]["x-agentos-limits"] == {"dishes": 3}


def test_a_mutation_names_its_scope_its_key_and_what_may_refuse_it() -> None:
    cancel = msgspec.to_builtins(_document())["paths"]["/v1/meals/{meal_id}:cancel"]["post"]

    assert cancel["security"] == [{"bearer": ["runs:cancel"]}]
    assert [(p["name"], p["in"]) for p in cancel["parameters"]] == [("meal_id", "path"), ("Idempotency-Key", "header")]
    assert {"400", "401", "403", "409", "413", "415", "422", "503"} <= cancel["responses"].keys()


def test_a_public_route_needs_no_token() -> None:
    health = msgspec.to_builtins(_document())["paths"]["/healthz"]["get"]

    assert health["security"] == []
    assert "401" not in health["responses"]


def test_a_route_without_documentation_is_refused() -> None:
    undocumented = RouteTable([*ROUTES.routes, Route(method="GET", template="/v1/secret", access="runs:read")])

    with pytest.raises(ValueError, match="/v1/secret"):
        document(title="", description="", version="1", routes=undocumented, operations=OPERATIONS, limits={})
