"""What the gateway adds inside `error`: OpenAI's `type` and `param`, and the receipt of what failed."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ports.errors import (
    AgentOSError,
    Conflict,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from ports.http import envelope
from ports.messages import Json

TYPES: Final[Mapping[type[AgentOSError], str]] = {
    InvalidArgument: "invalid_request_error",
    Unauthenticated: "authentication_error",
    PermissionDenied: "permission_error",
    NotFound: "invalid_request_error",
    Conflict: "conflict_error",
    ResourceExhausted: "rate_limit_error",
    Unsupported: "invalid_request_error",
    Unavailable: "api_error",
    Internal: "api_error",
}

# Where OpenAI's name for it is another than that of its class.
_TYPE_OF_CODE: Final = {"budget_exceeded": "insufficient_quota"}


def openai_members(error: AgentOSError) -> Mapping[str, Any]:
    """`type`, `param` and what the request's receipt had by then."""
    path = error.details.get("path") or error.details.get("upstream_param")
    param = path.removeprefix("$").lstrip(".") if isinstance(path, str) else ""
    return {
        "type": _TYPE_OF_CODE.get(error.code) or TYPES[type(error)],
        "param": param or None,
        **error.surface,
    }


DOCUMENTED: Final[dict[str, Json]] = {
    "type": {"type": "string", "enum": sorted({*TYPES.values(), *_TYPE_OF_CODE.values()})},
    "param": {"type": ["string", "null"], "description": "The member of the request that is wrong."},
    "policy_outcome": {"type": "object", "description": "What policy decided, if it got that far."},
    "budget": {"type": "object", "description": "The tenant's budget as it stood."},
    "route": {"type": "object", "description": "The backends that were tried."},
    "tenant_id": {"type": "string"},
}
"""The same members for the OpenAPI document."""


# Anthropic's words; where a status has none, `invalid_request_error` below 500 and `api_error` from there on.
_ANTHROPIC: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_ANTHROPIC_CODES: Final = {"budget_exceeded": "billing_error"}


def anthropic_error(error: AgentOSError, correlation_id: str) -> dict[str, Any]:
    """Anthropic's envelope around ours: its `type`, and in `details` its `error_code`, which is our `code`."""
    status = envelope.status_of(error)
    usual = "invalid_request_error" if status < 500 else "api_error"  # noqa: PLR2004 - HTTP's own numbers
    members = envelope.members_of(error, correlation_id, openai_members(error))
    members["type"] = _ANTHROPIC_CODES.get(error.code) or _ANTHROPIC.get(status, usual)
    members["details"] = {**members["details"], "error_code": error.code}
    return {"type": "error", "error": members, "request_id": correlation_id}


def anthropic_body(error: AgentOSError, correlation_id: str) -> bytes:
    return msgspec.json.encode(anthropic_error(error, correlation_id))
