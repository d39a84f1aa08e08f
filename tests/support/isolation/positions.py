"""The map of the matrix: for each route, which of its places hold an id, and of what. Written by hand, checked by machine.

A place is `path:run_id`, `query:cursor`, `header:X-Tenant-Id` or `body:metadata.agent_id`. What the OpenAPI documents name
and this map does not is unmapped, and fails the proof: whoever adds a route says here what its places name.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

Json: TypeAlias = Any  # JSON of a request or a document
Key: TypeAlias = tuple[str, str, str]
"""Surface, method, template."""

REPLAYED: Final = frozenset({"header:Idempotency-Key", "header:X-Step-Key"})
"""Places of keys: whoever sends another one's whole request under its key must not get its answer."""
FREE: Final = frozenset({"cursor", "event"})
"""Kinds that are positions and name nobody: they must show nothing of anybody's, but have no absent counterpart."""
OF_THE_TENANT: Final = frozenset({"tenant", "model"})
"""Kinds that all namespaces of a tenant share."""
EVERYWHERE: Final = {"header:X-Tenant-Id": "tenant"}
"""On every route that asks who is there, whether documented or not."""


class Row(Struct, frozen=True, kw_only=True):
    ids: Mapping[str, str] = {}
    """Place → kind of what it names. Path parameters are filled with the asker's own unless they are the place tried."""
    plain: tuple[str, ...] = ()
    """Places that name nothing of anybody's."""
    body: Json = None
    """Of a valid request; `{kind}` in a text is the asker's own."""
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    """What a valid request must have there; filled like a body."""
    platform: bool = False
    """For platform administrators, who are above tenants: to all others it must be closed, whatever they name."""
    above: tuple[str, ...] = ()
    """Places where platform administrators may name another tenant; to all others they are places like any."""
    tenant_wide: bool = False
    """What it shows is the whole tenant's, of all its namespaces."""


_PAGE: Final = ("query:limit",)
_CHAT: Final = tuple(
    f"body:{name}"
    for name in (
        "logit_bias", "max_completion_tokens", "max_tokens", "messages", "n", "parallel_tool_calls", "response_format",
        "seed", "stop", "stream", "stream_options", "temperature", "tool_choice", "tools", "top_p", "user",
    )
)  # fmt: skip
_RESPONSE: Final = tuple(
    f"body:{name}"
    for name in (
        "background", "include", "input", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls",
        "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "stream",
        "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user",
    )
)  # fmt: skip
_MESSAGE: Final = tuple(
    f"body:{name}"
    for name in (
        "cache_control", "max_tokens", "messages", "metadata", "output_config", "service_tier", "stop_sequences", "stream",
        "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
    )
)  # fmt: skip
_SAID: Final = [{"role": "user", "content": "of {secret}"}]
_CALL: Final = {
    "header:Idempotency-Key": "key",
    "header:X-Step-Key": "key",
    "header:X-Agent-Id": "agent",
    "header:X-Session-Id": "session",
    "body:model": "model",
}
_VERB: Final = {"header:Idempotency-Key": "key"}
_GATEWAY: Final = "/v1/admin/gateway/configuration"
_TENANTS: Final = "/v1/admin/tenants"
_TENANT: Final = _TENANTS + "/{tenant_id}"
_BUDGET: Final = _TENANT + "/budgets/{budget_id}"
_PRIVACY: Final = _TENANT + "/privacy"
_OWN_KEYS: Final = "/v1/admin/keys"
_KEY: Final = _TENANT + "/keys/{key_id}"
_AUDIT: Final = "/v1/admin/audit"
_SUBJECT: Final = {"path:tenant_id": "subject"}
"""A tenant of the owner's making: only platform administrators have any."""
# Principals are named by each tenant as it likes: a name alone is nobody's.
_ENTRIES: Final = (*_PAGE, *(f"query:{name}" for name in ("action", "principal", "outcome", "since", "until")))

MAP: Final[Mapping[Key, Row]] = {
    ("a", "POST", "/v1/agents/{agent_id}/runs"): Row(
        ids={"path:agent_id": "agent", "body:session_id": "session", "body:tenant": "tenant", **_VERB},
        plain=("body:context", "body:deadline_s", "body:input", "body:priority", "body:tool_allowlist"),
        body={"input": "about {secret}"},
    ),
    ("a", "GET", "/v1/agents"): Row(ids={"query:cursor": "cursor"}, plain=_PAGE),
    ("a", "GET", "/v1/agents/{agent_id}"): Row(ids={"path:agent_id": "agent"}, plain=("query:version",)),
    ("a", "GET", "/v1/runs"): Row(
        ids={"query:agent_id": "agent", "query:parent_run_id": "run", "query:cursor": "cursor"},
        plain=(*_PAGE, "query:status"),
    ),
    ("a", "GET", "/v1/runs/{run_id}"): Row(ids={"path:run_id": "run"}),
    ("a", "POST", "/v1/runs/{run_id}:cancel"): Row(
        ids={"path:run_id": "run_queued", **_VERB}, plain=("body:reason",), body={"reason": "no use"}
    ),
    ("a", "POST", "/v1/runs/{run_id}:retry"): Row(ids={"path:run_id": "run", **_VERB}, body={}),
    ("a", "POST", "/v1/runs/{run_id}:fork"): Row(
        ids={"path:run_id": "run", **_VERB}, plain=("body:from_step",), body={"from_step": 0}
    ),
    ("a", "POST", "/v1/runs/{run_id}:resolve"): Row(
        ids={"path:run_id": "run_parked", **_VERB},
        plain=("body:decision", "body:message", "body:output", "body:step"),
        body={"step": 1, "decision": "retry"},
    ),
    ("a", "GET", "/v1/runs/{run_id}/steps"): Row(ids={"path:run_id": "run", "query:cursor": "cursor"}, plain=_PAGE),
    ("a", "GET", "/v1/runs/{run_id}/events"): Row(
        ids={"path:run_id": "run", "header:Last-Event-ID": "event", "query:after": "event"}
    ),
    ("a", "GET", "/v1/audit"): Row(
        ids={"query:subject": "run", "query:cursor": "cursor"}, plain=_ENTRIES, tenant_wide=True
    ),
    ("b", "POST", "/v1/chat/completions"): Row(
        ids={**_CALL, "body:metadata.agent_id": "agent", "body:metadata.session_id": "session"},
        plain=_CHAT,
        body={"model": "{model}", "messages": _SAID},
    ),
    ("b", "POST", "/v1/responses"): Row(ids=_CALL, plain=_RESPONSE, body={"model": "{model}", "input": "of {secret}"}),
    ("b", "POST", "/v1/messages"): Row(
        ids=_CALL, plain=_MESSAGE, body={"model": "{model}", "max_tokens": 50, "messages": _SAID}
    ),
    ("b", "POST", "/v1/messages/count_tokens"): Row(
        ids={"body:model": "model"}, plain=_MESSAGE, body={"model": "{model}", "messages": _SAID}
    ),
    ("b", "POST", "/v1/steps:cancel"): Row(ids={"body:step_key": "step_key"}, body={"step_key": "{step_key}"}),
    ("b", "POST", "/v1/embeddings"): Row(
        ids=_CALL,
        plain=("body:dimensions", "body:encoding_format", "body:input", "body:metadata", "body:user"),
        body={"model": "{model}", "input": "of {secret}"},
    ),
    ("b", "POST", "/v1/policy/check"): Row(
        ids={"body:model": "model", "header:X-Agent-Id": "agent", "header:X-Session-Id": "session"},
        plain=_CHAT,
        body={"model": "{model}", "messages": _SAID},
    ),
    ("b", "GET", "/v1/models"): Row(),
    ("b", "GET", "/v1/models/{model}"): Row(ids={"path:model": "model"}),
    ("admin", "GET", _GATEWAY): Row(platform=True),
    ("admin", "PUT", _GATEWAY): Row(
        ids={"header:If-Match": "version_tag", **_VERB},
        plain=("query:dry_run", "body:comment", "body:document"),
        body={"document": {}, "comment": "{secret}"},
        headers={"If-Match": "*"},
        platform=True,
    ),
    ("admin", "GET", _GATEWAY + "s"): Row(ids={"query:cursor": "cursor"}, plain=_PAGE, platform=True),
    ("admin", "GET", _GATEWAY + "s/{version}"): Row(ids={"path:version": "version"}, platform=True),
    ("admin", "POST", _GATEWAY + "s/{version}:activate"): Row(
        ids={"path:version": "version", "header:If-Match": "version_tag", **_VERB},
        plain=("body:comment",),
        body={"comment": "{secret}"},
        platform=True,
    ),
    ("admin", "GET", _AUDIT): Row(
        ids={"query:tenant_id": "tenant", "query:subject": "run", "query:cursor": "cursor"},
        plain=_ENTRIES,
        above=("query:tenant_id",),
        tenant_wide=True,
    ),
    ("admin", "GET", _AUDIT + "/chain"): Row(
        ids={"query:tenant_id": "tenant"},
        # A home is the node's: of it, too, it is the chain of `tenant_id` that is shown.
        plain=("query:after", "query:home", *_PAGE),
        above=("query:tenant_id",),
        tenant_wide=True,
    ),
    ("admin", "GET", _AUDIT + "/verification"): Row(
        ids={"query:tenant_id": "tenant"}, above=("query:tenant_id",), tenant_wide=True
    ),
    # In the order of a tenant's life: its owner makes each of these requests once, and then it is gone.
    ("admin", "POST", _TENANTS): Row(
        ids={"body:id": "subject", **_VERB},
        plain=("body:name", "body:entitlements"),
        body={"id": "{newcomer}", "name": "{secret}"},
        platform=True,
    ),
    ("admin", "GET", _TENANTS): Row(ids={"query:cursor": "cursor"}, plain=_PAGE, platform=True),
    ("admin", "GET", _TENANT): Row(ids=_SUBJECT, platform=True),
    ("admin", "PATCH", _TENANT): Row(
        ids={**_SUBJECT, **_VERB},
        plain=("body:entitlements", "header:If-Match"),
        body={"entitlements": {"max_active_runs": 7}},
        headers={"If-Match": "*"},
        platform=True,
    ),
    ("admin", "PUT", _BUDGET): Row(
        ids={**_SUBJECT, "path:budget_id": "budget", **_VERB},
        plain=tuple(f"body:{name}" for name in ("limit", "scope", "scope_id", "unit", "period", "tz", "mode")),
        body={"limit": 1_000},
        platform=True,
    ),
    ("admin", "GET", _TENANT + "/budgets"): Row(ids={**_SUBJECT, "query:scope_id": "agent"}, platform=True),
    ("admin", "GET", _BUDGET): Row(
        ids={**_SUBJECT, "path:budget_id": "budget", "query:scope_id": "agent"}, platform=True
    ),
    ("admin", "DELETE", _BUDGET): Row(ids={**_SUBJECT, "path:budget_id": "budget", **_VERB}, platform=True),
    ("admin", "GET", _TENANT + "/usage"): Row(ids=_SUBJECT, plain=("query:days", "query:by_agent"), platform=True),
    ("admin", "POST", _PRIVACY + "/exports"): Row(
        ids={**_SUBJECT, **_VERB}, plain=("body:subject",), body={"subject": "usr_gone"}, platform=True
    ),
    ("admin", "POST", _PRIVACY + "/erasures"): Row(
        ids={**_SUBJECT, **_VERB},
        plain=("body:subject", "body:confirm"),
        body={"subject": "usr_gone", "confirm": "usr_gone"},
        platform=True,
    ),
    ("admin", "GET", _PRIVACY + "/erasures"): Row(ids=_SUBJECT, plain=_PAGE, platform=True),
    # Of the tenant itself: what is held is not deleted.
    ("admin", "POST", _PRIVACY + "/holds"): Row(
        ids={"path:tenant_id": "tenant", **_VERB},
        plain=("body:subject", "body:reason"),
        body={"subject": "usr_held", "reason": "{secret}"},
        platform=True,
    ),
    ("admin", "GET", _PRIVACY + "/holds"): Row(ids=_SUBJECT, platform=True),
    ("admin", "POST", _PRIVACY + "/holds/{hold_id}:release"): Row(
        ids={**_SUBJECT, "path:hold_id": "hold", **_VERB}, body={}, platform=True
    ),
    ("admin", "PATCH", _PRIVACY + "/retention"): Row(
        ids={**_SUBJECT, **_VERB}, plain=("body:days",), body={"days": {"runs": 30}}, platform=True
    ),
    ("admin", "GET", _PRIVACY + "/retention"): Row(ids=_SUBJECT, platform=True),
    ("admin", "GET", _TENANT + "/principals"): Row(
        ids={**_SUBJECT, "query:cursor": "cursor"}, plain=_PAGE, platform=True
    ),
    ("admin", "PUT", _TENANT + "/principals"): Row(
        ids={**_SUBJECT, **_VERB},
        plain=("body:principal", "body:status", "body:roles"),
        body={"principal": "svc_{subject}", "roles": ["viewer"]},
        platform=True,
    ),
    ("admin", "PUT", _TENANT + "/acting"): Row(
        ids={**_SUBJECT, "body:actor_tenant": "tenant", **_VERB},
        plain=("body:principal", "body:allowed"),
        body={"actor_tenant": "{tenant}", "principal": "svc_{subject}", "allowed": True},
        platform=True,
    ),
    ("admin", "GET", _TENANT + "/acting"): Row(ids=_SUBJECT, platform=True),
    ("admin", "GET", _TENANT + "/keys"): Row(ids={**_SUBJECT, "query:cursor": "cursor"}, plain=_PAGE, platform=True),
    ("admin", "POST", _TENANT + "/keys"): Row(
        ids={**_SUBJECT, **_VERB},
        plain=tuple(
            f"body:{name}" for name in ("principal", "role", "scopes", "namespace", "label", "expires_in_days")
        ),
        body={"principal": "svc_{subject}", "role": "viewer", "label": "{secret}"},
        platform=True,
    ),
    ("admin", "POST", _KEY + ":rotate"): Row(
        ids={**_SUBJECT, "path:key_id": "api_key", **_VERB},
        plain=("body:grace_minutes", "body:expires_in_days"),
        body={},
        platform=True,
    ),
    ("admin", "POST", _KEY + ":revoke"): Row(
        ids={**_SUBJECT, "path:key_id": "api_key", **_VERB}, body={}, platform=True
    ),
    # Of the caller's tenant and namespace, which no place names.
    ("admin", "GET", _OWN_KEYS): Row(ids={"query:cursor": "cursor"}, plain=_PAGE),
    ("admin", "POST", _OWN_KEYS): Row(
        ids=_VERB,
        plain=tuple(f"body:{name}" for name in ("principal", "role", "scopes", "label", "expires_in_days")),
        body={"principal": "svc_own", "role": "viewer", "label": "{secret}"},
    ),
    ("admin", "POST", _OWN_KEYS + "/{key_id}:rotate"): Row(
        ids={"path:key_id": "own_key", **_VERB}, plain=("body:grace_minutes", "body:expires_in_days"), body={}
    ),
    ("admin", "POST", _OWN_KEYS + "/{key_id}:revoke"): Row(ids={"path:key_id": "own_key", **_VERB}, body={}),
    ("admin", "POST", _TENANT + ":enable"): Row(ids={**_SUBJECT, **_VERB}, body={}, platform=True),
    ("admin", "POST", _TENANT + ":disable"): Row(ids={**_SUBJECT, **_VERB}, body={}, platform=True),
    ("admin", "DELETE", _TENANT): Row(
        ids={**_SUBJECT, "query:confirm": "subject", **_VERB}, query={"confirm": "{subject}"}, platform=True
    ),
    ("admin", "GET", "/v1/admin/runs"): Row(
        ids={"query:tenant_id": "tenant", "query:agent_id": "agent", "query:cursor": "cursor"},
        plain=(*_PAGE, "query:namespace", "query:status"),
        query={"tenant_id": "{tenant}"},
        platform=True,
    ),
    ("admin", "POST", "/v1/admin/runs/{run_id}:kill"): Row(
        ids={"path:run_id": "run_doomed", "body:tenant_id": "tenant", **_VERB},
        plain=("body:namespace", "body:reason"),
        body={"tenant_id": "{tenant}", "reason": "{secret}"},
        platform=True,
    ),
    **{(surface, "GET", "/v1/me/permissions"): Row() for surface in ("a", "b", "admin")},
    ("a", "GET", "/.well-known/jwks.json"): Row(),
    ("a", "GET", "/.well-known/openid-configuration"): Row(),
    **{
        (surface, "GET", path): Row()
        for surface in ("a", "b", "admin")
        for path in ("/healthz", "/readyz", "/openapi.json", "/metrics")
    },
}


def places(document: Json) -> dict[tuple[str, str], list[str]]:
    """Of an OpenAPI document: each operation with what it takes and where."""
    found = {}
    for template, operations in document["paths"].items():
        for method, operation in operations.items():
            named = [f"{one['in']}:{one['name']}" for one in operation["parameters"]]
            if body := operation.get("requestBody"):
                schema = body["content"]["application/json"]["schema"]
                named += [f"body:{name}" for name in sorted(_members(document, schema))]
            found[method.upper(), template] = named
    return found


def _members(document: Json, schema: Json) -> set[str]:
    if "$ref" in schema:
        return _members(document, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]])
    found = set(schema.get("properties", {}))
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found |= _members(document, one)
    return found


def unmapped(documents: Mapping[str, Json], rows: Mapping[Key, Row] = MAP) -> list[str]:
    """Routes without a row, rows without a route, and places that a row does not know."""
    served = {
        (surface, method, template): named
        for surface, document in documents.items()
        for (method, template), named in places(document).items()
    }
    found = [f"no row: {' '.join(key)}" for key in served if key not in rows]
    found += [f"no route: {' '.join(key)}" for key in rows if key not in served]
    for key, named in served.items():
        if (row := rows.get(key)) is not None:
            known = {*row.ids, *row.plain}
            found += [f"no place {place}: {' '.join(key)}" for place in named if place not in known]
    return found


def tried(row: Row, *, public: bool) -> dict[str, str]:
    """The places of a row that hold ids, with those that every route has."""
    return dict(row.ids) if public else {**EVERYWHERE, **row.ids}


def filled(template: Json, values: Mapping[str, str]) -> Json:
    """`template` with `{kind}` in its texts replaced."""
    if template is None:
        return None
    text = msgspec.json.encode(template).decode()
    for kind, value in values.items():
        text = text.replace("{" + kind + "}", value)
    return msgspec.json.decode(text)
