"""What a surface is: one request's way back to its client. And what all of them read and write alike. Pure."""

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from ports.errors import AgentOSError, InvalidArgument, Unsupported
from ports.http.edge import decoded
from ports.messages import Json
from stack_b.chunks import Run

_NEEDS_ESCAPE: Final = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')

RECEIPT: Final = ("policy_outcome", "route", "correlation_id", "tenant_id")
"""What an answer is given beside its usage, under the same names on every surface."""

_MAX_NAME: Final = 64
"""Of a client's own words in an error."""

_COUNTS: Final = frozenset(
    {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"}
)


class Wire(Protocol):
    """The answer to one request, in one client's dialect. Made for that request; not shared."""

    keep_alive: bytes
    """What is sent while there is nothing to say."""
    names: Mapping[str, str]
    """The canonical members that this dialect calls otherwise."""

    def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        """The body for a whole answer."""
        ...

    def chunk(self, chunk: dict[str, Json]) -> bytes:
        """The events for a chunk of the answer; may be none."""
        ...

    def run(self, run: Run) -> bytes:
        """The events for chunks that differ in their texts alone: those that `chunk` gives for each."""
        ...

    def end(self) -> bytes:
        """The events after the last chunk."""
        ...

    def failed(self, error: AgentOSError, correlation_id: str) -> bytes:
        """The events for a failure on the way; nothing comes after them."""
        ...


def told(error: AgentOSError, names: Mapping[str, str]) -> AgentOSError:
    """`error` with the member that the pipeline found wrong as the client wrote it."""
    path = error.details.get("path")
    name = names.get(path.removeprefix("$.")) if isinstance(path, str) else None
    if name is not None:
        error.details["path"] = f"$.{name}"
    return error


StructT = TypeVar("StructT", bound=Struct)


def strictly(value: dict[str, Json], kind: type[StructT]) -> StructT:
    """`value` as `kind`, which forbids unknown fields.

    These dialects are translated, so a member that isn't known here can't be passed on, and must not be lost silently.

    Raises:
        InvalidArgument: `validation_failed`, with the path of the very member that is wrong or unknown.
        Unsupported: a kind of item, content or tool that has no counterpart here.
    """
    try:
        return decoded(value, kind)
    except InvalidArgument as error:
        path: str = error.details["path"]
        reason = error.message.partition(": ")[2]
        if reason.startswith("Object contains unknown field"):
            raise refused(
                f"{path}.{reason.split('`')[1][:_MAX_NAME]}", "this gateway doesn't know it and can't pass it on"
            ) from None
        if reason.startswith(("Invalid value", "Invalid enum value")) and path.endswith(".type"):
            raise uncarried(path, "this kind has no counterpart in what backends here understand") from None
        raise


def refuse_uncarried(value: Mapping[str, Json], harmless: Mapping[str, tuple[Json, ...]]) -> None:
    """Refuse the members named in `harmless` unless they have one of the values that change nothing; null always may."""
    for name, values in harmless.items():
        given = value.get(name)
        if given is not None and given not in values:
            raise uncarried(f"$.{name}", "it asks for what this gateway doesn't do")


def bare(value: Json) -> Json:
    """An object without its null members: in these dialects null and absent are the same. Anything else as it is."""
    return {name: member for name, member in value.items() if member is not None} if isinstance(value, dict) else value


def given(**members: Json) -> dict[str, Json]:
    """The members that are not None."""
    return {name: member for name, member in members.items() if member is not None}


def joined(parts: list[dict[str, Json]]) -> Json:
    """Content parts; a single text as plain text, because some backends know nothing else."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def said(message: Mapping[str, Json], member: str) -> str:
    """A text of the backend's; nothing if it wrote something else there."""
    text = message.get(member)
    return text if isinstance(text, str) else ""


def stem_of(answer: Mapping[str, Json], otherwise: str) -> str:
    """What makes the ids of this answer its own."""
    return str(answer.get("id") or otherwise).removeprefix("chatcmpl-")


def escaped(texts: list[str]) -> list[str]:
    """Each as it stands between the quotes of a JSON string."""
    if _NEEDS_ESCAPE.search("".join(texts)) is None:
        return texts
    return [msgspec.json.encode(text).decode()[1:-1] for text in texts]


def receipt_in(answer: Mapping[str, Json]) -> dict[str, Json]:
    return {name: answer[name] for name in RECEIPT if name in answer}


def untranslated(usage: Mapping[str, Json]) -> dict[str, Json]:
    """The receipt's part of a usage, and what else a backend counted."""
    return {name: value for name, value in usage.items() if name not in _COUNTS}


def detail(usage: Mapping[str, Json], group: str, name: str) -> int:
    """A count that not every backend reports, such as `cached_tokens`."""
    details = usage.get(group)
    count = details.get(name) if isinstance(details, dict) else None
    return count if isinstance(count, int) else 0


def event(kind: str, members: Mapping[str, Any]) -> bytes:
    """A named event; these dialects, unlike chat completions, have names."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **members}) + b"\n\n"


def refused(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {reason}", code="validation_failed", details={"path": path})


def uncarried(path: str, reason: str) -> Unsupported:
    return Unsupported(f"{path}: {reason}", details={"path": path})
