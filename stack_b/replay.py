"""One reply in its three forms: the chunks of a stream, the whole answer that is journaled, and chunks again. Pure.

A stream that was gathered and one that was never streamed look alike: whoever asks again gets the form it asked for.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, from_code
from ports.messages import Json
from stack_b.canonical import ChatCall, EmbedCall, said
from stack_b.fragments import joined as _joined

RECEIPT: Final[tuple[str, ...]] = ("usage", "policy_outcome", "route", "correlation_id", "tenant_id")


def digest_of(call: ChatCall | EmbedCall) -> str:
    """Of what is asked, not of how it shall be sent."""
    asked: tuple[Json, ...]
    if isinstance(call, ChatCall):
        asked = (call.model, said(call), call.choices, call.max_tokens)
    else:
        asked = ("embed", call.model, call.inputs, call.members, call.encoding)
    return "sha256:" + hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


def is_streamed(call: ChatCall | EmbedCall) -> bool:
    return isinstance(call, ChatCall) and call.stream


class Gathered:
    """The chunks of one answer, on their way to being whole."""

    def __init__(self) -> None:
        self._head: dict[str, Json] = {}
        self._receipt: dict[str, Json] = {}
        self._choices: dict[int, dict[str, Json]] = {}

    def add(self, chunk: dict[str, Json]) -> None:
        self._receipt |= {name: chunk[name] for name in RECEIPT if name in chunk}
        self._head |= {name: value for name, value in chunk.items() if name not in {"choices", *RECEIPT}}
        for raw in chunk["choices"]:
            index = raw.get("index") or 0
            known = self._choices.get(index, {"index": index, "message": {}})
            rest = {name: value for name, value in raw.items() if name not in {"index", "delta"}}
            known = {name: _joined(known.get(name), rest.get(name)) for name in (known | rest)}
            self._choices[index] = known | {"message": _with_delta(known["message"], raw.get("delta") or {})}

    def add_all(self, chunks: Iterable[dict[str, Json]]) -> None:
        for chunk in chunks:
            self.add(chunk)

    def reply(self) -> dict[str, Json]:
        choices = [choice for _, choice in sorted(self._choices.items())]
        return {**self._head, "object": "chat.completion", "choices": choices, **self._receipt}


def is_closing(chunk: dict[str, Json]) -> bool:
    """Whether a chunk says that the answer, or a choice of it, is whole."""
    return not chunk["choices"] or any(choice.get("finish_reason") is not None for choice in chunk["choices"])


def chunks_of(reply: dict[str, Json], *, include_usage: bool) -> list[dict[str, Json]]:
    """`reply` as one stream: what was said, what shall be called, the end; the receipt is on the last finish chunk."""
    head = _head(reply)
    said: list[dict[str, Json]] = []
    for choice in reply["choices"]:
        kept = {name: value for name, value in choice.items() if name not in {"message", "finish_reason"}}
        message = dict(choice["message"])
        calls = message.pop("tool_calls", None)
        said.append({**head, "choices": [{**kept, "delta": message, "finish_reason": None}]})
        if calls:
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            delta = {"tool_calls": numbered}
            said.append({**head, "choices": [{"index": choice["index"], "delta": delta, "finish_reason": None}]})
    return [*said, *closing_of(reply, include_usage=include_usage)]


def closing_of(reply: dict[str, Json], *, include_usage: bool) -> list[dict[str, Json]]:
    """The chunks that say that `reply` is whole."""
    receipt, head = {name: reply[name] for name in RECEIPT if name in reply}, _head(reply)
    ends: list[dict[str, Json]] = []
    for choice in reply["choices"]:
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
        ends.append({**head, "choices": [end]})
    ends[-1] |= receipt
    if include_usage:
        ends.append({**head, "choices": [], "usage": receipt["usage"]})
    return ends


def replayed(reply: dict[str, Json], auth: AuthContext, *, joined: bool = False) -> dict[str, Json]:
    """What somebody is told who asked for a reply that was there already, or, `joined`, on its way."""
    route = {**reply["route"], "replayed": True, "joined": joined}
    return {**reply, "route": route, "correlation_id": auth.trace.correlation_id}


def is_final(error: AgentOSError) -> bool:
    """Whether asking again would be refused again: the backend has read the request, and won't have it.

    What this node refuses (a budget, an entitlement, a policy) may be allowed the next time, and has cost nothing.
    """
    return isinstance(error, InvalidArgument) and "upstream_status" in error.details


def may_be_paid(error: BaseException) -> bool:
    """Whether a failed call may have cost something all the same."""
    if not isinstance(error, AgentOSError):
        return True
    attempts = (error.surface.get("route") or {}).get("attempts") or ()
    unknown = error.code == "upstream_timeout" or error.details.get("outcome") == "unknown"
    return unknown or any(one["tokens"] or one["reason"] == "cancelled" for one in attempts)


def outcome_of(error: AgentOSError) -> Json:
    return {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "details": error.details,
        "surface": error.surface,
    }


def error_in(outcome: Json) -> AgentOSError:
    error = from_code(outcome["code"], outcome["message"], details=outcome["details"], retryable=outcome["retryable"])
    error.surface = outcome["surface"]
    return error


def _head(reply: dict[str, Json]) -> dict[str, Json]:
    """What all chunks of `reply` have."""
    head = {name: value for name, value in reply.items() if name not in {"choices", *RECEIPT}}
    return {**head, "object": "chat.completion.chunk"}


def _with_delta(message: dict[str, Json], delta: dict[str, Json]) -> dict[str, Json]:
    # Tool calls come whole, see `streaming`; in a message they have no index.
    calls = [{name: value for name, value in call.items() if name != "index"} for call in delta.get("tool_calls") or ()]
    said = {name: value for name, value in delta.items() if name not in {"role", "tool_calls"}}
    joined: dict[str, Json] = {"role": "assistant", "content": None} | message
    joined |= {name: _joined(joined.get(name), value) for name, value in said.items()}
    return joined | ({"tool_calls": [*joined.get("tool_calls", ()), *calls]} if calls else {})
