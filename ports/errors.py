"""The errors a port may raise, and the codes they carry.

* AgentOSError
  - InvalidArgument     the caller sent something that no retry can fix
  - Unauthenticated     no valid identity
  - PermissionDenied    authenticated, but not allowed
  - NotFound            absent, or in another tenant: the two are indistinguishable on purpose
  - Conflict            lost a race on an epoch, a lease or an idempotency key
  - ResourceExhausted   a budget, rate or size limit was reached
  - Unsupported         the adapter declared that it can't do this
  - Unavailable         the other side did not answer; whether it acted is unknown
  - Internal            a bug, ours or the adapter's

The tree is closed and knows no HTTP. Every error has a `code`, the symbolic name clients act on; each code
belongs to one class (`CODES`). Messages are for people: they name the thing, the limit and the value, never a
payload, a token or personal data.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar, Final


class AgentOSError(Exception):
    """Base of the tree; never raised itself."""

    default_code: ClassVar[str]
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after: timedelta | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        owner = CODES.get(self.code)
        assert owner is None or isinstance(self, owner), f"{self.code} belongs to {owner}"
        assert owner is not None, f"{self.code} is not a declared code"
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after = retry_after
        self.retryable = _retryable(self) if retryable is None else retryable
        # What a surface tells beside `details`, inside the same object: Stack B's receipt of the failed call.
        self.surface: dict[str, Any] = {}
        # Who was denied, where only the verifier knows: for the audit, and never for the caller.
        self.caller: Any = None


class InvalidArgument(AgentOSError):
    default_code = "invalid_request"


class Unauthenticated(AgentOSError):
    default_code = "unauthenticated"


class PermissionDenied(AgentOSError):
    default_code = "insufficient_scope"


class NotFound(AgentOSError):
    default_code = "not_found"


class Conflict(AgentOSError):
    default_code = "conflict"


class ResourceExhausted(AgentOSError):
    default_code = "rate_limited"
    default_retryable = True


class Unsupported(AgentOSError):
    default_code = "unsupported"


class Unavailable(AgentOSError):
    default_code = "unavailable"
    default_retryable = True


class Internal(AgentOSError):
    default_code = "internal"


CODES: Final[Mapping[str, type[AgentOSError]]] = {
    # Seen by clients of the HTTP surfaces.
    "invalid_json": InvalidArgument,
    "invalid_request": InvalidArgument,
    "idempotency_key_required": InvalidArgument,
    "context_length_exceeded": InvalidArgument,
    "request_exceeds_budget": InvalidArgument,
    "validation_failed": InvalidArgument,
    "unsafe_url": InvalidArgument,
    "method_not_allowed": InvalidArgument,
    "payload_too_large": InvalidArgument,
    "unsupported_media_type": InvalidArgument,
    "unauthenticated": Unauthenticated,
    "insufficient_scope": PermissionDenied,
    "tenant_mismatch": PermissionDenied,
    "tenant_disabled": PermissionDenied,
    "policy_blocked": PermissionDenied,
    "model_not_entitled": PermissionDenied,
    "tool_not_permitted": PermissionDenied,
    "peer_forbidden": PermissionDenied,
    "not_found": NotFound,
    "conflict": Conflict,
    "idempotency_in_progress": Conflict,
    "idempotency_key_reused": Conflict,
    "runs_open": Conflict,
    "legal_hold": Conflict,
    "hold_released": Conflict,
    "too_many_holds": Conflict,
    "too_many_keys": Conflict,
    "rate_limited": ResourceExhausted,
    "concurrency_limited": ResourceExhausted,
    "budget_exceeded": ResourceExhausted,
    "budget_in_flight": ResourceExhausted,
    "unsupported": Unsupported,
    "upstream_error": Unavailable,
    "upstream_auth_error": Unavailable,
    "upstream_timeout": Unavailable,
    "unavailable": Unavailable,
    "internal": Internal,
    # Seen inside a run: in its steps, events and `error`.
    "fenced": Conflict,
    "tool_not_allowed": PermissionDenied,
    "tool_bad_arguments": InvalidArgument,
    "tool_timeout": Unavailable,
    "tool_response_too_large": ResourceExhausted,
    "tool_bad_output": Internal,
    "tool_failed": Unavailable,
    "tool_tls_error": Unavailable,
    "egress_denied": PermissionDenied,
    "max_steps_exceeded": ResourceExhausted,
    "max_cost_exceeded": ResourceExhausted,
    "max_depth_exceeded": ResourceExhausted,
    "child_failed": Unavailable,
    "run_timeout": ResourceExhausted,
    "outcome_unknown": Unavailable,
    "poison": ResourceExhausted,
}

# A code whose answer to "may I send this again unchanged?" differs from its class.
_RETRYABLE: Final[Mapping[str, bool]] = {
    "idempotency_in_progress": True,
    "budget_exceeded": False,
    "upstream_auth_error": False,
    "outcome_unknown": False,
    "tool_failed": False,
    "tool_response_too_large": False,
    "max_steps_exceeded": False,
    "max_cost_exceeded": False,
    "max_depth_exceeded": False,
    "child_failed": False,
    "run_timeout": False,
    "poison": False,
}


def _retryable(error: AgentOSError) -> bool:
    return _RETRYABLE.get(error.code, error.default_retryable)


def from_code(code: str, message: str, **more: Any) -> AgentOSError:
    """The error that carries `code`: rebuilds one that crossed a wire or lay in the journal.

    A code this version does not know becomes `Internal`, so that an older node can read a newer one's journal.
    """
    owner = CODES.get(code)
    if owner is None:
        return Internal(f"{code}: {message}", **more)
    return owner(message, code=code, **more)


def again(error: AgentOSError) -> AgentOSError:
    """The same refusal for another caller: an exception belongs to whoever raises it."""
    copy = from_code(error.code, error.message, details=error.details, retryable=error.retryable)
    copy.retry_after, copy.surface = error.retry_after, error.surface
    return copy
