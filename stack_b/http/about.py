"""What a client says its request is of: `metadata` in the body, or headers, which work on every surface and go first.

Header values are percent-encoded where they hold more than visible ASCII. Neither is proof of anything: whoever counts by
them trusts its own clients.
"""

from collections.abc import Mapping
from typing import Final, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec.structs import replace

from ports.budget import MAX_SCOPE_ID_CHARS
from ports.errors import InvalidArgument
from ports.http.headers import Headers
from ports.messages import Json
from stack_b.canonical import NOBODY_KNOWN, About, ChatCall, EmbedCall

AGENT: Final = b"x-agent-id"
SESSION: Final = b"x-session-id"
ABOUT: Final = (AGENT, SESSION)

CallT = TypeVar("CallT", ChatCall, EmbedCall)


def about(metadata: Json) -> About:
    """Raises `InvalidArgument` for a name that is too long. What is no text says nothing."""
    if not metadata:
        return NOBODY_KNOWN
    told: Mapping[str, Json] = metadata if isinstance(metadata, dict) else {}
    return About(agent=_member(told, "agent_id"), session=_member(told, "session_id"))


def told(call: CallT, headers: Headers) -> CallT:
    """`call`, of what the headers say, where they say something. Raises `InvalidArgument`."""
    agent, session = headers.text(AGENT), headers.text(SESSION)
    if agent is None and session is None:
        return call
    known = call.about
    return replace(
        call,
        about=About(
            agent=known.agent if agent is None else _value(AGENT, agent),
            session=known.session if session is None else _value(SESSION, session),
        ),
    )


def _member(given: Mapping[str, Json], member: str) -> str:
    name = given.get(member)
    if not isinstance(name, str):
        return ""
    if len(name) > MAX_SCOPE_ID_CHARS:
        raise InvalidArgument(
            f"{member} is longer than {MAX_SCOPE_ID_CHARS} characters",
            code="validation_failed",
            details={"path": f"$.metadata.{member}"},
        )
    return name


def _value(name: bytes, given: str) -> str:
    header = name.decode()
    try:
        value = unquote_to_bytes(given.encode("ascii")).decode()
    except UnicodeError:
        value = ""
    if not 1 <= len(value) <= MAX_SCOPE_ID_CHARS or "\0" in value:
        raise InvalidArgument(
            f"the header {header} is a name of 1 to {MAX_SCOPE_ID_CHARS} characters, percent-encoded where they are not "
            "visible ASCII",
            details={"path": header},
        )
    return value
