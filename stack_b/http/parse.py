"""From the wire to the canonical request: shape, caps, and what a client may not say. Pure."""

import re
from typing import Final, TypeVar, get_args

import msgspec
from msgspec.structs import replace

from ports.errors import InvalidArgument
from ports.http.edge import decoded
from ports.messages import Json
from stack_b.canonical import NOBODY_KNOWN, About, ChatCall, EmbedCall, Plain, Preference
from stack_b.fetched import FILE_ID, check_urls, names_file
from stack_b.http.about import about
from stack_b.http.wire import ChatBody, EmbeddingsBody, PlainChatBody
from stack_b.limits import Limits
from stack_b.members import CHAT, EMBED, NEVER, STEERING, WIDENING, WITHIN, extra, kinds_in, tool_kind

# What the gateway reads and sets itself.
_OURS: Final = frozenset({"model", "n", "max_tokens", "max_completion_tokens", "stream", "stream_options"})


PREFERENCE: Final = b"x-route-preference"
STEP_KEY: Final = b"x-step-key"
_STEP_KEY: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


CallT = TypeVar("CallT", ChatCall, EmbedCall)


def preferring(call: CallT, given: str | None) -> CallT:
    """`call` with what the header says to go by. Raises `InvalidArgument` for what is no preference."""
    if given is None:
        return call
    try:
        return replace(call, preference=msgspec.convert(given, Preference))
    except msgspec.ValidationError:
        raise InvalidArgument(
            f"the header {PREFERENCE.decode()} is {', '.join(get_args(Preference))}, or left out",
            details={"path": PREFERENCE.decode()},
        ) from None


def step_key(given: str) -> str:
    """Raises `InvalidArgument` for what can't be one."""
    if _STEP_KEY.fullmatch(given) is None:
        raise InvalidArgument(
            "a step key is 1 to 128 letters, digits and any of . _ : -", details={"path": "$.step_key"}
        )
    return given


def chat_call(value: dict[str, Json], limits: Limits) -> ChatCall:
    """Raises `InvalidArgument` (`validation_failed`) with the member that is wrong in `details.path`."""
    try:
        plain = msgspec.convert(value, PlainChatBody)
    except msgspec.ValidationError:
        return _any_call(value, limits)
    at_most(len(plain.messages), limits.messages, "messages")
    return _call(plain, value, limits, texts=tuple([message.content for message in plain.messages]))


def _any_call(value: dict[str, Json], limits: Limits) -> ChatCall:
    more = extra(value, CHAT, WITHIN)
    if more:
        refuse_steering(value)
    body = decoded(value, ChatBody)
    at_most(len(body.messages), limits.messages, "messages")
    for number, message in enumerate(body.messages):
        check_urls(message.content, f"$.messages[{number}].content")
    if any(names_file(message.content) for message in body.messages):
        more += (FILE_ID,)
    if body.tools or "functions" in value:
        tools = [*_objects(value, "tools"), *_objects(value, "functions")]
        at_most(len(tools), limits.tools, "tools")
        more += tuple(dict.fromkeys(tool_kind(kind) for tool in tools for kind in kinds_in(tool)))
    if isinstance(body.stop, list):
        at_most(len(body.stop), limits.stop_strings, "stop")
    if body.logit_bias:
        at_most(len(body.logit_bias), limits.logit_bias, "logit_bias")
    return _call(body, value, limits, more, about(value.get("metadata")))


def _call(
    body: ChatBody | PlainChatBody,
    value: dict[str, Json],
    limits: Limits,
    more: tuple[str, ...] = (),
    of: About = NOBODY_KNOWN,
    *,
    texts: tuple[str, ...] | None = None,
) -> ChatCall:
    choices = body.n or 1
    if choices > limits.choices:
        raise _refused("n", f"n is at most {limits.choices}")
    members = {name: member for name, member in value.items() if name not in _OURS}
    return ChatCall(
        model=body.model,
        members=members,
        plain=None if texts is None else Plain(members, texts),
        choices=choices,
        extra=more,
        max_tokens=_max_tokens(body, limits),
        stream=body.stream or False,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        about=of,
    )


def embed_call(value: dict[str, Json], limits: Limits) -> EmbedCall:
    """Raises like `chat_call`."""
    more = extra(value, EMBED)
    if more:
        refuse_steering(value)
    given = value.get("input")
    if isinstance(given, list) and given and not all(isinstance(item, str) for item in given):
        raise _refused("input", "input must be text: token ids can't be checked by policy, so send the text itself")
    body = decoded(value, EmbeddingsBody)
    inputs = (body.input,) if isinstance(body.input, str) else tuple(body.input)
    if not inputs or not all(inputs):
        raise _refused("input", "input must hold at least one text, and no empty one")
    at_most(len(inputs), limits.embedding_inputs, "input")
    ours = {"model", "input", "encoding_format", "metadata"}
    return EmbedCall(
        model=body.model,
        inputs=inputs,
        members={name: member for name, member in value.items() if name not in ours},
        extra=more,
        encoding=body.encoding_format or "float",
        about=about(value.get("metadata")),
    )


def refuse_steering(value: dict[str, Json], *, limit: str = "max_tokens and n") -> None:
    """Also for surfaces that limit an answer by another member, `limit`."""
    if NEVER.isdisjoint(value):
        return
    for name in STEERING:
        if name in value:
            raise _refused(name, f"{name!r} is not taken: this node decides where a request goes")
    for name in WIDENING:
        if name in value and name != limit:
            raise _refused(name, f"{name!r} is not taken: say how much may be written with {limit}")


def _max_tokens(body: ChatBody | PlainChatBody, limits: Limits) -> int | None:
    """The one limit that both spellings agree on."""
    name, value = "max_tokens", body.max_tokens
    if body.max_completion_tokens is not None:
        if value is None:
            name, value = "max_completion_tokens", body.max_completion_tokens
        elif value != body.max_completion_tokens:
            raise _refused("max_tokens", "max_tokens and max_completion_tokens disagree; send one of them")
    if value is not None and value > limits.max_tokens:
        raise _refused(name, f"{name} is at most {limits.max_tokens}")
    return value


def _objects(value: dict[str, Json], name: str) -> list[dict[str, Json]]:
    member = value.get(name) or []
    if not isinstance(member, list) or not all(isinstance(item, dict) for item in member):
        raise _refused(name, f"{name} must be a list of objects")
    return member


def at_most(count: int, limit: int, name: str) -> None:
    if count > limit:
        raise _refused(name, f"{name} has {count} items; at most {limit} are taken")


def _refused(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(reason, code="validation_failed", details={"path": f"$.{path}"})
