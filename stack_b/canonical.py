"""One canonical form of a request. Everything after the parser works on these and never sees the wire again."""

from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ports.messages import Json

Preference: TypeAlias = Literal["quality", "cost", "latency"]


class About(Struct, frozen=True, kw_only=True, gc=False):
    """What a request is of, as far as its client says, beside its tenant and principal."""

    agent: str = ""
    session: str = ""


NOBODY_KNOWN: Final = About()


class Plain(Struct, frozen=True, gc=False):
    """Of members that are nothing but texts and settings, as most are: what every walk through them would come to."""

    members: dict[str, Json]
    """Those very ones: of any other value nothing is known."""
    texts: tuple[str, ...]
    """What is said, and all that there is to look through."""


class ChatCall(Struct, frozen=True, kw_only=True, gc=False):
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
    plain: Plain | None = None
    """See `texts_in`."""
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


class Encoded(dict[str, Json]):
    """Members, with the JSON that they are. Nobody changes them."""

    __slots__ = ("json",)
    json: bytes


def encoded(members: dict[str, Json], json: bytes) -> Encoded:
    """No constructor: that of a dictionary, called from one of ours, costs as much as all the rest of it."""
    found = Encoded(members)
    found.json = json
    return found


def said(call: ChatCall) -> dict[str, Json]:
    """All that a client says: to be decided on, though a backend may be told less."""
    return {**call.members, "metadata": call.metadata} if call.metadata else call.members


def texts_in(call: ChatCall | EmbedCall, value: Json) -> tuple[str, ...] | None:
    """The texts of `value`, where it is known that there is nothing else in it; None where one has to look."""
    plain = call.plain if isinstance(call, ChatCall) else None
    return plain.texts if plain is not None and plain.members is value else None


def sent(call: ChatCall, value: dict[str, Json]) -> dict[str, Json]:
    """Of `value`, which came of what was said, what a backend is told."""
    return {name: member for name, member in value.items() if name != "metadata"} if call.metadata else value
