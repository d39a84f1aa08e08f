"""One canonical form of a request. Everything after the parser works on these and never sees the wire again."""

from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ports.messages import Json

Preference: TypeAlias = Literal["quality", "cost", "latency"]


class About(Struct, frozen=True, kw_only=True):
    """What a request is of, as far as its client says, beside its tenant and principal."""

    agent: str = ""
    session: str = ""


NOBODY_KNOWN: Final = About()


class ChatCall(Struct, frozen=True, kw_only=True):
    model: str
    members: dict[str, Json]
    """The client's members that a backend may know: `messages`, `tools` and the rest, without those named below."""
    metadata: dict[str, Json] = {}
    """What the client says of itself where that is not among `members`, because no backend is told."""
    extra: tuple[str, ...] = ()
    """What of it not every backend may be sent, see `stack_b.members`."""
    choices: int = 1
    max_tokens: int | None = None
    """Per choice; None when the client left it to us."""
    preference: Preference = "quality"
    """What to go by where several backends may serve it."""
    about: About = NOBODY_KNOWN
    stream: bool = False
    include_usage: bool = False
    """The client asked for a usage chunk at the end of the stream."""
    route: str = ""
    """Where it was asked."""


class EmbedCall(Struct, frozen=True, kw_only=True):
    model: str
    inputs: tuple[str, ...]
    members: dict[str, Json]
    """`dimensions`, `user` and what else a backend may know."""
    extra: tuple[str, ...] = ()
    encoding: Literal["float", "base64"] = "float"
    about: About = NOBODY_KNOWN
    preference: Preference = "quality"
    route: str = ""


def said(call: ChatCall) -> dict[str, Json]:
    """All that a client says: to be decided on, though a backend may be told less."""
    return {**call.members, "metadata": call.metadata} if call.metadata else call.members


def sent(call: ChatCall, value: dict[str, Json]) -> dict[str, Json]:
    """Of `value`, which came of what was said, what a backend is told."""
    return {name: member for name, member in value.items() if name != "metadata"} if call.metadata else value
