"""Tool port: named functions that agents may call.

Clauses (each has a test in `conformance.tool`):

* TOO-1  `list_tools` gives every tool the caller may see, sorted by name; `describe` gives each of them by name.
* TOO-2  `describe` and `invoke` of an unknown name raise `NotFound`.
* TOO-3  Arguments that do not satisfy `input_schema` raise `InvalidArgument` (`tool_bad_arguments`), and the tool does not
         act.
* TOO-4  A call that takes longer than its timeout raises `Unavailable` (`tool_timeout`); its work is cancelled.
* TOO-5  An output larger than `max_output_bytes` raises `ResourceExhausted` (`tool_response_too_large`).
* TOO-6  The output is JSON: it encodes and decodes to an equal value.
* TOO-7  A tool that keeps data keeps it per tenant and namespace.
* TOO-8  For `pure` and `idempotent` tools two calls with the same key have the effect of one.
* TOO-9  Every `input_schema` is a valid JSON Schema of type `object` with `additionalProperties` false.
* TOO-10 `reconcile` of a call that took effect gives its output, and None of one that did not, whoever else's call has the
         same key; a tool that keeps no record raises `Unsupported`, as all do unless `capabilities.reconcile`.
* TOO-11 A `transactional` tool does not act: what it would do is in the `writes` of its result, and whoever records the
         result makes them true together with it. No other tool has `writes`.
* TOO-12 An error says whether the call may have taken effect, or yet may: an `Unavailable` or `Internal` says that it may,
         unless its `details` have `sent` as false; `tool_failed`, `tool_tls_error`, `tool_bad_output` and all others say
         that it has not, or was answered, unless their `details` have `outcome` as `unknown`. Of an `unsafe` call that may
         have acted, `reconcile` or a person is asked.
"""

from datetime import timedelta
from typing import Final, Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import AgentOSError, Internal, Unavailable
from ports.memory import MemoryWrite
from ports.messages import Json
from ports.run_state import EffectClass

MAX_OUTPUT_BYTES: Final = 256 * 1024

NOT_SENT: Final = {"sent": False}
"""`details` of an error that came before anybody could act: no connection, no process."""
OUTCOME_UNKNOWN: Final = {"outcome": "unknown"}
"""`details` of an error after which nobody knows: the connection broke, the process died."""
_ANSWERED: Final = frozenset({"tool_failed", "tool_tls_error", "tool_bad_output"})


def may_have_acted(error: AgentOSError) -> bool:
    """Whether a call that raised `error` may have taken effect, or yet may (TOO-12)."""
    if isinstance(error, Unavailable | Internal) and error.code not in _ANSWERED:
        return error.details.get("sent") is not False
    return error.details.get("outcome") == "unknown"


class ToolSpec(Struct, frozen=True, kw_only=True):
    name: str
    description: str
    input_schema: dict[str, Json]
    effect: EffectClass
    timeout: timedelta = timedelta(seconds=30)
    max_output_bytes: int = MAX_OUTPUT_BYTES
    scopes: tuple[str, ...] = ("tools:invoke",)
    """What the requester of a run must hold for the run to call this."""


class ToolCall(Struct, frozen=True, kw_only=True):
    name: str
    arguments: Json
    key: str
    """Idempotency key of the effect: the same on every attempt of the same step."""


class ToolResult(Struct, frozen=True, kw_only=True):
    output: Json
    writes: tuple[MemoryWrite, ...] = ()
    """The effect of a `transactional` tool: as yet nothing of it is true."""


class ToolCapabilities(Struct, frozen=True, kw_only=True):
    reconcile: bool = False
    """Whether the adapter can tell of one of its tools at least what became of an interrupted call."""


class ToolPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks; calls are cancellable."""

    @property
    def capabilities(self) -> ToolCapabilities: ...

    async def list_tools(self, auth: AuthContext) -> tuple[ToolSpec, ...]: ...

    async def describe(self, auth: AuthContext, name: str) -> ToolSpec: ...

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        """Run the tool, at most for the shorter of `timeout` and its own.

        Raises:
            NotFound, InvalidArgument, ResourceExhausted, Unavailable: as the clauses say.
            PermissionDenied: `egress_denied`.
            Unavailable: `tool_failed` (it answered that it failed; retrying is the caller's choice), `tool_tls_error`.
        """
        ...

    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        """What the interrupted call with `key` did; None when it did nothing.

        Raises:
            Unsupported: the tool keeps no record of its calls, or `capabilities.reconcile` is false.
            NotFound: as the clauses say.
            Unavailable: it can't be told now.
        """
        ...
