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
    choices: int = 1
    max_tokens: int | None = None
    """Per choice; None when the client left it to us."""
    preference: Preference = "quality"
    """What to go by where several backends may serve it."""
    about: About = NOBODY_KNOWN
    stream: bool = False
    include_usage: bool = False
    """The client asked for a usage chunk at the end of the stream."""


class EmbedCall(Struct, frozen=True, kw_only=True):
    model: str
    inputs: tuple[str, ...]
    members: dict[str, Json]
    """`dimensions`, `user` and what else a backend may know."""
    encoding: Literal["float", "base64"] = "float"
    about: About = NOBODY_KNOWN
    preference: Preference = "quality"
