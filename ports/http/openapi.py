"""The OpenAPI document of a surface, assembled from what already decides: the route table, the wire Structs, the errors.

    document(title=…, description=…, version=…, routes=RouteTable, operations={("GET", "/v1/runs"): Operation(…)},
             limits={"max_body_bytes": …}, error_members={"type": {…}}) -> dict, ready for `msgspec.json.encode`

Every declared route must have an `Operation` and the reverse, so that a route can't be served undocumented. Request and
response types are msgspec Structs (or any type msgspec has a schema for); the error envelope, the bearer scheme, the
`Idempotency-Key` of mutations and the correlation headers are added here.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct, field

from ports.http.envelope import LATER, STATUS
from ports.http.routes import DENIED, IDENTIFIED, LOOPBACK, PUBLIC, Route, RouteTable
from ports.messages import Json

OPENAPI_VERSION: Final = "3.1.0"

_REF: Final = "#/components/schemas/{name}"
_PATH_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_AUTHENTICATED_CODES: Final = ("unauthenticated", "insufficient_scope", "tenant_mismatch", "tenant_disabled")
_BODY_CODES: Final = (
    "invalid_json", "invalid_request", "payload_too_large", "unsupported_media_type", "validation_failed",
    "concurrency_limited",
)  # fmt: skip
_MUTATION_CODES: Final = ("idempotency_key_required", "idempotency_in_progress", "idempotency_key_reused")
_EVERY_CODE: Final = ("invalid_request", "internal", "unavailable")
_TEXT: Final = {"type": "string"}
_EVENT: Final = {"type": "object", "required": ["data"], "properties": {"id": _TEXT, "event": _TEXT, "data": _TEXT}}
"""One event of a stream, which is what a schema of `text/event-stream` is about before OpenAPI 3.2."""
_CORRELATED: Final = {
    name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Correlation-Id", "X-Request-Id", "traceparent")
}


class Parameter(Struct, frozen=True, kw_only=True):
    """A query parameter or a header that one operation takes."""

    name: str
    description: str
    schema: dict[str, Json] = field(default_factory=lambda: {"type": "string"})
    where: Literal["query", "header"] = "query"
    required: bool = False


class Operation(Struct, frozen=True, kw_only=True):
    """What the document says about one route beyond the route itself."""

    summary: str
    description: str = ""
    tag: str = ""
    request: Any = None
    """Type of the JSON body; None for none."""
    request_optional: bool = False
    """An absent body is one with all its defaults."""
    response: Any = None
    """Type of the JSON answer; None when it has none, or not in JSON."""
    status: int = 200
    stream: Any = None
    """Type of one event's `data`, when the operation (also) answers with `text/event-stream`."""
    media_type: str = "application/json"
    parameters: tuple[Parameter, ...] = ()
    codes: tuple[str, ...] = ()
    """Error codes beyond those that follow from the route: authentication, body, idempotency."""


def document(
    *,
    title: str,
    description: str,
    version: str,
    routes: RouteTable,
    operations: Mapping[tuple[str, str], Operation],
    limits: Mapping[str, int],
    error_members: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """The document. `operations` is keyed by (method, public template); `limits` are the published caps by name.

    Raises:
        ValueError: a route without an operation, or an operation without a route.
    """
    served: dict[tuple[str, str], Route] = {
        (route.method, route.template): route for route in routes.routes if route.access != DENIED
    }
    if served.keys() != operations.keys():
        raise ValueError(f"routes and their documentation differ: {sorted(served.keys() ^ operations.keys())}")
    types = [
        kind for operation in operations.values() for kind in (operation.request, operation.response, operation.stream)
    ]
    schemas, components = msgspec.json.schema_components(
        [kind for kind in types if kind is not None], ref_template=_REF
    )
    found = iter(schemas)
    # In the order of `types`: None consumes nothing.
    by_position = [None if kind is None else next(found) for kind in types]
    paths: dict[str, dict[str, Json]] = {}
    for index, (key, operation) in enumerate(operations.items()):
        method, template = key
        request, response, stream = by_position[3 * index : 3 * index + 3]
        paths.setdefault(template, {})[method.lower()] = _operation(
            served[key], operation, request=request, response=response, stream=stream
        )
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": title, "version": version, "description": description, "x-agentos-limits": dict(limits)},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _error_schema(error_members or {})},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A JWT of this surface's audience or an API key. Each operation names its scope.",
                }
            },
            "headers": {
                "X-Correlation-Id": _header("Names this request in logs, audit and every error."),
                "X-Request-Id": _header("The same as X-Correlation-Id, under the name SDKs look for."),
                "Retry-After": _header("Seconds after which to try again, where the refusal is `retryable`."),
                "traceparent": _header("W3C trace context: the client's trace continued, or a new one."),
            },
        },
    }


def _operation(
    route: Route, operation: Operation, *, request: Json | None, response: Json | None, stream: Json | None
) -> dict[str, Json]:
    content: dict[str, Json] = {}
    if response is not None:
        content[operation.media_type] = {"schema": response}
    elif operation.media_type != "application/json":
        content[operation.media_type] = {"schema": {"type": "string"}}
    if stream is not None:
        content["text/event-stream"] = {"schema": _EVENT, "x-event-data": stream}
    answers: dict[str, Json] = {str(operation.status): _answer(operation.summary, content)}
    answers.update(_refusals(_codes(route, operation)))
    document: dict[str, Json] = {
        "operationId": _operation_id(route),
        "summary": operation.summary,
        "parameters": _parameters(route, operation),
        "responses": answers,
        "security": [] if route.access in {PUBLIC, LOOPBACK} else [{"bearer": _scopes(route.access)}],
        "x-agentos-access": route.access,
    }
    if operation.description:
        document["description"] = operation.description
    if operation.tag:
        document["tags"] = [operation.tag]
    if request is not None:
        document["requestBody"] = {
            "required": not operation.request_optional,
            "content": {"application/json": {"schema": request}},
        }
        document["x-max-body-bytes"] = route.max_body_bytes
    return document


def _codes(route: Route, operation: Operation) -> list[str]:
    """The error codes a client may meet here, in a steady order."""
    codes = list(_EVERY_CODE)
    if route.access not in {PUBLIC, LOOPBACK}:
        codes += _AUTHENTICATED_CODES
    if route.method in _WITH_BODY:
        codes += _BODY_CODES
    if route.mutation:
        codes += _MUTATION_CODES
    codes += operation.codes
    return list(dict.fromkeys(codes))


def _refusals(codes: list[str]) -> dict[str, Json]:
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): _refusal(status, named, body) for status, named in sorted(by_status.items())}


def _refusal(status: int, named: list[str], body: Json) -> dict[str, Json]:
    answer = _answer("Refused: " + ", ".join(f"`{code}`" for code in named), body)
    if status in LATER:
        answer["headers"] = {**_CORRELATED, "Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer


def _answer(description: str, content: Json) -> dict[str, Json]:
    answer: dict[str, Json] = {"description": description, "headers": _CORRELATED}
    if content:
        answer["content"] = content
    return answer


def _parameters(route: Route, operation: Operation) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(route.template)
    ]
    if route.mutation:
        key = {"type": "string", "minLength": 1, "maxLength": 255}
        found.append({"name": "Idempotency-Key", "in": "header", "required": True, "schema": key})
    found += [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": parameter.required,
            "description": parameter.description,
            "schema": parameter.schema,
        }
        for parameter in operation.parameters
    ]
    return found


def _operation_id(route: Route) -> str:
    """`post_v1_runs_run_id_cancel`: stable, because generated clients name their methods after it."""
    return "_".join([route.method.lower(), *re.findall(r"[a-z0-9_]+", route.template.lower())])


def _header(description: str) -> dict[str, Json]:
    return {"description": description, "schema": {"type": "string"}}


def _error_schema(members: Mapping[str, Json]) -> dict[str, Json]:
    error = {
        "type": "object",
        "required": ["code", "message", "retryable", "details", "correlation_id"],
        "properties": {
            "code": {"type": "string", "enum": sorted(STATUS), "description": "Act on this, never on the text."},
            "message": {"type": "string"},
            "retryable": {"type": "boolean", "description": "Whether the same request may succeed later."},
            "details": {"type": "object"},
            "correlation_id": {"type": "string"},
            **members,
        },
    }
    return {"type": "object", "required": ["error"], "properties": {"error": error}}


def _scopes(access: str) -> list[str]:
    return [] if access == IDENTIFIED else [access]
