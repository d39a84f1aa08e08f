"""Under which key a call is made once: a run's step, a client's Idempotency-Key, or a retry of one without a key. Pure.

The official clients try again by themselves, with the very same bytes, and say so in a header. They send no key of their
own, so that the request itself is the key: its principal, route, what it asks, and under which circumstances.
"""

import hashlib
from datetime import timedelta
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from ports.context import AuthContext, PolicyContext
from ports.reply_journal import RETENTION
from stack_b.canonical import NOBODY_KNOWN, About, ChatCall, EmbedCall, Preference
from stack_b.replay import digest_of

JOIN_WINDOW: Final = timedelta(minutes=2)
"""How long the answer to a request without a key waits for its retry, which comes within seconds. Not longer: somebody who
asks the same again later wants another answer."""
MAX_RETRIES: Final = 99
"""What is more than that is no count."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
"""How the official clients wait before they try again."""
_SLACK_S: Final = 2.0
_TIMED_OUT: Final = 0.8
"""Of its time to wait: whoever leaves later has most likely not given up but run out of time."""


class Once(Struct, frozen=True, kw_only=True):
    key: str
    """Of the entry in the journal."""
    named: str
    """In errors."""
    keep: timedelta = RETENTION
    patience: timedelta | None = None
    """How long the call goes on while nobody waits for it; None: to its end."""


class Client(Struct, frozen=True, kw_only=True):
    """What a client says of itself that tries again by itself."""

    retries: int
    """How often it has tried before."""
    waits_s: float | None
    """Until it gives an attempt up."""

    def timed_out(self, waited_s: float) -> bool:
        """Whether a client that leaves after so long is about to try again."""
        return self.waits_s is not None and waited_s >= _TIMED_OUT * self.waits_s


Circumstances: TypeAlias = tuple[About, Preference, PolicyContext]
_NOTHING_SAID: Final[Circumstances] = (NOBODY_KNOWN, "quality", PolicyContext())

_OWNER_CHARS: Final = 32
"""128 bits of a principal's digest: nobody finds a name that has another's."""


def circumstances(auth: AuthContext, call: ChatCall | EmbedCall) -> Circumstances:
    """What budgets, rules and routes go by beside what is asked: headers and the token say it."""
    return (call.about, call.preference, auth.policy)


def digest(auth: AuthContext, call: ChatCall | EmbedCall) -> str:
    """Of what is asked and under which circumstances: who repeats it under others asks for something else."""
    asked, under = digest_of(call), circumstances(auth, call)
    if under == _NOTHING_SAID:
        return asked
    return "sha256:" + hashlib.sha256(asked.encode() + b"\0" + msgspec.json.encode(under)).hexdigest()


def of_step(auth: AuthContext, key: str) -> Once:
    """A step of a run: its principal's, whichever token it comes with. A worker that takes the run over has another one."""
    owner = hashlib.sha256(auth.principal.encode("utf-8", "surrogatepass")).hexdigest()[:_OWNER_CHARS]
    # Behind the key, so that whoever looks into the journal sees of which step an entry is.
    return Once(key=f"{key}/{owner}", named=f"the step key {key!r}")


def of_client(auth: AuthContext, route: str, key: str) -> Once:
    """A client's own key: its principal's, on one route."""
    return Once(key=_hashed("idempotency", auth, route, key), named="this Idempotency-Key")


def of_retry(auth: AuthContext, call: ChatCall | EmbedCall, retries: int) -> Once:
    """The same for all attempts at a request."""
    under = msgspec.json.encode(circumstances(auth, call)).decode()
    return Once(
        key=_hashed("retry", auth, call.route, f"{digest_of(call)}\0{under}"),
        named="this request",
        keep=JOIN_WINDOW,
        patience=patience(retries),
    )


def patience(retries: int) -> timedelta:
    """How long it may take until a client that has tried so often tries again."""
    pause = min(_FIRST_PAUSE_S * 2.0 ** min(retries, MAX_RETRIES), _LONGEST_PAUSE_S)
    return timedelta(seconds=pause + _SLACK_S)


def _hashed(kind: str, auth: AuthContext, route: str, key: str) -> str:
    # 64 characters behind the slash, which is in no step key: none of those is ever taken for one of these.
    text = f"{auth.principal}\0{route}\0{key}"
    return f"{kind}/{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
