"""The route table of the gateway: every route with its scope, and what the OpenAPI document says of it."""

from typing import Final

from msgspec.structs import asdict

from ports.http import permissions
from ports.http.limits import COMMON
from ports.http.openapi import Operation, Parameter
from ports.http.routes import LOOPBACK, PUBLIC, Route, RouteTable
from ports.messages import Json
from stack_b.http import wire
from stack_b.http.surfaces.messages_wire import CountBody, MessageEvent, MessagesBody, MessageView, TokenCount
from stack_b.http.surfaces.responses_wire import ResponseEvent, ResponsesBody, ResponseView
from stack_b.limits import Limits

SCOPE: Final = "models:invoke"

_CALL_CODES: Final = (
    "model_not_entitled", "policy_blocked", "tool_not_permitted", "request_exceeds_budget", "context_length_exceeded",
    "budget_exceeded", "budget_in_flight", "upstream_error", "upstream_auth_error", "upstream_timeout",
)  # fmt: skip
_STEP_CODES: Final = ("idempotency_in_progress", "idempotency_key_reused", "conflict")


_ONCE: Final = Parameter(
    name="Idempotency-Key",
    description="1 to 255 printable ASCII characters, the principal's on this route for 7 days: the call is made once.",
    schema={"type": "string", "minLength": 1, "maxLength": 255},
    where="header",
)


def routes(limits: Limits) -> RouteTable:
    body = limits.body_bytes
    return RouteTable(
        (
            # Not mutations: SDKs send no Idempotency-Key here.
            Route(method="POST", template="/v1/chat/completions", access=SCOPE, max_body_bytes=body, query=()),
            Route(method="POST", template="/v1/responses", access=SCOPE, max_body_bytes=body, query=()),
            # Anthropic's client says `?beta=true` for what it calls beta.
            Route(method="POST", template="/v1/messages", access=SCOPE, max_body_bytes=body, query=("beta",)),
            Route(
                method="POST", template="/v1/messages/count_tokens", access=SCOPE, max_body_bytes=body, query=("beta",)
            ),
            Route(method="POST", template="/v1/steps:cancel", access=SCOPE, query=()),
            Route(method="POST", template="/v1/embeddings", access=SCOPE, max_body_bytes=body, query=()),
            Route(method="POST", template="/v1/policy/check", access=SCOPE, max_body_bytes=body, query=()),
            Route(method="GET", template="/v1/models", access=SCOPE, query=()),
            Route(method="GET", template="/v1/models/{model}", access=SCOPE, query=(), wide=True),
            permissions.ROUTE,
            Route(method="GET", template="/healthz", access=PUBLIC),
            Route(method="GET", template="/readyz", access=PUBLIC),
            Route(method="GET", template="/openapi.json", access=PUBLIC),
            Route(method="GET", template="/metrics", access=LOOPBACK),
        )
    )


def published(limits: Limits) -> dict[str, int]:
    """The caps, as the OpenAPI document names them."""
    return {
        **{f"max_{name.removeprefix('max_')}": value for name, value in asdict(limits).items()},
        **COMMON,
    }


OPERATIONS: Final = {
    ("POST", "/v1/chat/completions"): Operation(
        summary="Complete a chat",
        description=(
            "OpenAI's chat completions, plus a receipt. Personal data and secrets in the request reach no backend. With "
            "`stream`, each event is one `data:` line, the last one is `[DONE]`; a failure on the way is an `error` event. "
            "The header `X-Route-Preference` (`quality`, `cost`, `latency`) says what to go by where several may answer. "
            "`X-Agent-Id` and `X-Session-Id` (percent-encoded), or `metadata`, say what budgets count by, on all surfaces. "
            "With the header `X-Step-Key`, a key of the principal's, the call is made once: it goes on when the client "
            "leaves, and who sends the same request under it within 7 days gets the same reply (`route.replayed`), as far "
            "as it may still be asked for, and pays nothing. So it is with `Idempotency-Key`. Members that not every "
            "backend may be sent, and tools that the provider runs, are refused (400) where no backend passes them. Who "
            "repeats a request while its call is under way joins it, a stream from its first chunk (`route.joined`). "
            "A retry of the official clients (`x-stainless-retry-count`) needs no key."
        ),
        parameters=(_ONCE,),
        tag="models",
        request=wire.ChatBody,
        response=wire.ChatCompletion,
        stream=wire.ChatChunk,
        codes=(*_CALL_CODES, *_STEP_CODES),
    ),
    ("POST", "/v1/responses"): Operation(
        summary="Create a response",
        description=(
            "OpenAI's responses, plus a receipt. Stateless: nothing is stored, so `store`, `previous_response_id`, "
            "`conversation` and `background` are refused, like every member and kind of item or tool that no backend could "
            "be told. With `stream`, OpenAI's events; a failure on the way is `response.failed`, then `error`. "
            "`X-Step-Key` and `Idempotency-Key` work as for chat completions."
        ),
        parameters=(_ONCE,),
        tag="models",
        request=ResponsesBody,
        response=ResponseView,
        stream=ResponseEvent,
        codes=(*_CALL_CODES, *_STEP_CODES, "unsupported"),
    ),
    ("POST", "/v1/messages"): Operation(
        summary="Create a message",
        description=(
            "Anthropic's messages, plus a receipt. The key may come as `x-api-key`. What no backend could be told is "
            "refused. With `stream`, Anthropic's events, and `ping` while there is nothing to say. An error has "
            "Anthropic's `type` around and inside the `error` described here; `error.details.error_code` is its `code`. "
            "`X-Step-Key` and `Idempotency-Key` work as for chat completions."
        ),
        parameters=(_ONCE,),
        tag="models",
        request=MessagesBody,
        response=MessageView,
        stream=MessageEvent,
        codes=(*_CALL_CODES, *_STEP_CODES, "unsupported"),
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        summary="Estimate a message's input tokens",
        description="By the size of what a backend would read. Calls no backend and changes nothing.",
        tag="policy",
        request=CountBody,
        response=TokenCount,
        codes=("model_not_entitled", "unsupported"),
    ),
    ("POST", "/v1/steps:cancel"): Operation(
        summary="End the call under way under a step key",
        description=(
            "Here and in the backend, where it is this principal's. What it has used is paid; its callers get 409. Without "
            "such a call: nothing. It is in the log of requests either way."
        ),
        tag="models",
        request=wire.StepBody,
        response=wire.StepView,
    ),
    ("POST", "/v1/embeddings"): Operation(
        summary="Embed texts",
        description="One vector per text, as numbers or base64. Texts only: token ids can't be checked by policy.",
        tag="models",
        request=wire.EmbeddingsBody,
        response=wire.EmbeddingList,
        parameters=(_ONCE,),
        codes=(*_CALL_CODES, *_STEP_CODES),
    ),
    ("POST", "/v1/policy/check"): Operation(
        summary="Ask what policy and budget would decide",
        description=(
            "Takes a chat completion's body, or that of embeddings. Decides by the same code as a call would, calls no "
            "backend and changes nothing; what would be denied is in the audit."
        ),
        tag="policy",
        request=wire.ChatBody,
        response=wire.PolicyVerdict,
        codes=("model_not_entitled",),
    ),
    ("GET", "/v1/models"): Operation(summary="List the tenant's models", tag="models", response=wire.ModelList),
    ("GET", "/v1/models/{model}"): Operation(
        summary="Get one of the tenant's models", tag="models", response=wire.ModelView, codes=("not_found",)
    ),
    ("GET", permissions.PATH): permissions.OPERATION,
    ("GET", "/healthz"): Operation(summary="Whether the process lives", tag="operation", response=wire.Health),
    ("GET", "/readyz"): Operation(
        summary="Whether it can serve, and if not, which dependency is missing (503)",
        tag="operation",
        response=wire.Readiness,
    ),
    ("GET", "/openapi.json"): Operation(summary="This document", tag="operation", response=dict[str, Json]),
    ("GET", "/metrics"): Operation(summary="Prometheus metrics", tag="operation", media_type="text/plain"),
}
