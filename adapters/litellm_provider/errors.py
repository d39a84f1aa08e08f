"""What an error of LiteLLM's means, by its class and by what was seen on the wire. The only place that says it. Pure.

The wire goes first: LiteLLM calls a refused connection, a 529 and an answer that is no JSON by the same name.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Final

from msgspec import Struct

from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Json

MAX_RETRY_AFTER_S: Final = 60
_UNKNOWN: Final = {"outcome": "unknown"}
_OK: Final = range(200, 300)
_REFUSED: Final = frozenset({400, 413, 422})
_COME_LATER: Final = frozenset({429, 503})


class Seen(Struct):
    """What became of a call on the wire."""

    sent: bool = False
    """A connection was there: the provider may have read it."""
    status: int = 0
    retry_after: str = ""
    timed_out: bool = False
    too_large: bool = False
    ended: bool = False
    """What is in every stream that is whole was in this one."""


class Meaning(Enum):
    """Of an error for which the wire says nothing: nothing was asked, or the answer began well."""

    REFUSED = "the request can't be put to this provider"
    TOO_LONG = "the request is longer than the model reads"
    CREDENTIALS = "the node's credentials are of no use"
    FAILED = "something went wrong"


MEANINGS: Final[Mapping[str, Meaning]] = {
    "APIConnectionError": Meaning.FAILED,
    "APIError": Meaning.FAILED,
    "APIResponseValidationError": Meaning.FAILED,
    "AuthenticationError": Meaning.CREDENTIALS,
    "BadGatewayError": Meaning.FAILED,
    "BadRequestError": Meaning.REFUSED,
    "BlockedPiiEntityError": Meaning.FAILED,
    "BudgetExceededError": Meaning.FAILED,
    "CallerCredentialAuthenticationError": Meaning.CREDENTIALS,
    "CallerCredentialRateLimitError": Meaning.FAILED,
    "ContentPolicyViolationError": Meaning.REFUSED,
    "ContextWindowExceededError": Meaning.TOO_LONG,
    "EndpointNotSupportedByModelError": Meaning.REFUSED,
    "GuardrailRaisedException": Meaning.FAILED,
    "ImageFetchError": Meaning.REFUSED,
    "InternalServerError": Meaning.FAILED,
    "InvalidRequestError": Meaning.REFUSED,
    "JSONSchemaValidationError": Meaning.FAILED,
    # Its name for a provider or a model that the operator wrote wrongly.
    "LiteLLMUnknownProvider": Meaning.FAILED,
    "MalformedRequestFieldError": Meaning.REFUSED,
    "MidStreamFallbackError": Meaning.FAILED,
    "MockException": Meaning.FAILED,
    "ModelNotMappedError": Meaning.FAILED,
    "ModifyResponseException": Meaning.FAILED,
    "NotFoundError": Meaning.FAILED,
    "OpenAIError": Meaning.FAILED,
    "PaymentRequiredError": Meaning.FAILED,
    "PermissionDeniedError": Meaning.CREDENTIALS,
    "RateLimitError": Meaning.FAILED,
    "RejectedRequestError": Meaning.REFUSED,
    "SensitiveDataRouteException": Meaning.FAILED,
    "ServiceUnavailableError": Meaning.FAILED,
    "Timeout": Meaning.FAILED,
    "UnprocessableEntityError": Meaning.REFUSED,
    "UnsupportedEndpointError": Meaning.REFUSED,
    "UnsupportedParamsError": Meaning.REFUSED,
    "VectorStoreSearchError": Meaning.FAILED,
}
"""By the class' name; one that is not here means what the nearest of its bases does."""


def translated(error: Exception, seen: Seen, provider: str) -> AgentOSError:
    """Ours for it. Nothing of its text: that quotes the request and the answer."""
    name = f"provider {provider!r}"
    meaning = _meaning(error)
    if seen.too_large:
        return _unknown(f"{name} says more than will be read")
    if seen.timed_out and seen.sent:
        return _unknown(f"{name} did not answer in time", code="upstream_timeout")
    if seen.status and seen.status not in _OK:
        return _of_status(name, seen, too_long=meaning is Meaning.TOO_LONG)
    if seen.sent:
        return _unknown(f"{name} broke off, or can't be understood")
    match meaning:
        case Meaning.TOO_LONG:
            return InvalidArgument(f"{name}: {meaning.value}", code="context_length_exceeded")
        case Meaning.REFUSED:
            return InvalidArgument(f"{name}: {meaning.value}; it may have members that this model does not know")
        case Meaning.CREDENTIALS:
            return Unavailable(f"{name}: {meaning.value}; the operator must renew them", code="upstream_auth_error")
        case Meaning.FAILED:
            return Unavailable(f"{name} can't be reached", code="upstream_error", details={"sent": False})


def broke_off(provider: str) -> AgentOSError:
    return _unknown(f"provider {provider!r} broke off in the middle of its answer")


def _meaning(error: BaseException) -> Meaning:
    found = (MEANINGS[one.__name__] for one in type(error).__mro__ if one.__name__ in MEANINGS)
    return next(found, Meaning.FAILED)


def _of_status(name: str, seen: Seen, *, too_long: bool) -> AgentOSError:
    told: dict[str, Json] = {"upstream_status": seen.status}
    if seen.status in _REFUSED:
        code = "context_length_exceeded" if too_long else "invalid_request"
        return InvalidArgument(f"{name} refused the request ({seen.status})", code=code, details=told)
    if seen.status in {401, 403}:
        return Unavailable(
            f"{name} refused the node's credentials; the operator must renew them",
            code="upstream_auth_error",
            details=told,
        )
    return Unavailable(
        f"{name} answered {seen.status}",
        code="upstream_timeout" if seen.status in {408, 504} else "upstream_error",
        details=told,
        retry_after=_retry_after(seen) if seen.status in _COME_LATER else None,
    )


def _retry_after(seen: Seen) -> timedelta | None:
    if not (seen.retry_after.isascii() and seen.retry_after.isdigit()):
        return None
    return timedelta(seconds=min(int(seen.retry_after[:9]), MAX_RETRY_AFTER_S))


def _unknown(message: str, *, code: str = "upstream_error") -> Unavailable:
    return Unavailable(message, code=code, details=_UNKNOWN)
