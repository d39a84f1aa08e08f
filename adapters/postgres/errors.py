"""From PostgreSQL's errors and asyncpg's to ours: the one place.

The server's errors are told apart by SQLSTATE, whose first two characters are a class; the exact code wins over the class.
Messages of the server may quote values, so none of them reaches ours; the cause stays attached for the log.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import asyncpg

from ports.errors import AgentOSError, Conflict, Internal, InvalidArgument, Unavailable

_CLASSES: Final[Mapping[str, type[AgentOSError]]] = {
    "00": Internal,  # successful completion: never raised
    "01": Internal,  # warning
    "02": Internal,  # no data
    "03": Internal,  # SQL statement not yet complete
    "08": Unavailable,  # connection exception
    "09": Internal,  # triggered action exception
    "0A": Internal,  # feature not supported
    "0B": Internal,  # invalid transaction initiation
    "0F": Internal,  # locator exception
    "0L": Internal,  # invalid grantor
    "0P": Internal,  # invalid role specification
    "0Z": Internal,  # diagnostics exception
    "10": Internal,  # XQuery error
    "20": Internal,  # case not found
    "21": Internal,  # cardinality violation
    "22": Internal,  # data exception: our edges let nothing through that a column can't hold, but see below
    "23": Internal,  # integrity constraint violation
    "24": Internal,  # invalid cursor state
    "25": Internal,  # invalid transaction state
    "26": Internal,  # invalid SQL statement name
    "27": Internal,  # triggered data change violation
    "28": Unavailable,  # invalid authorization specification: the operator's to mend, and worth another try
    "2B": Internal,  # dependent privilege descriptors still exist
    "2D": Internal,  # invalid transaction termination
    "2F": Internal,  # SQL routine exception
    "34": Internal,  # invalid cursor name
    "38": Internal,  # external routine exception
    "39": Internal,  # external routine invocation exception
    "3B": Internal,  # savepoint exception
    "3D": Unavailable,  # invalid catalog name: no such database yet
    "3F": Internal,  # invalid schema name
    "40": Unavailable,  # transaction rollback: deadlock, serialization failure
    "42": Internal,  # syntax error or access rule violation; row-level security among them
    "44": Internal,  # WITH CHECK OPTION violation
    "53": Unavailable,  # insufficient resources: disk full, too many connections
    "54": Internal,  # program limit exceeded
    "55": Unavailable,  # object not in prerequisite state: a lock not available
    "57": Unavailable,  # operator intervention: shutdown, cancelled by a timeout
    "58": Unavailable,  # system error
    "72": Unavailable,  # snapshot failure
    "F0": Internal,  # configuration file error
    "HV": Internal,  # foreign data wrapper
    "P0": Internal,  # PL/pgSQL
    "XX": Internal,  # internal error
}

_CODES: Final[Mapping[str, type[AgentOSError]]] = {
    "22021": InvalidArgument,  # a character the database can't hold: NUL
    "22P05": InvalidArgument,  # the same, escaped
    "23505": Conflict,  # unique violation
    "25P03": Unavailable,  # idle in transaction too long
    "25P04": Unavailable,  # transaction too long
    "42501": Internal,  # row-level security refused a row: wall one has a hole
}

_MOVED: Final = "AO001"
_ELSEWHERE: Final = "AO002"
"""Both raised by our own functions, see migration 0016."""

_TEXTS: Final[Mapping[type[AgentOSError], str]] = {
    InvalidArgument: "a text holds what can't be stored: a NUL or half of a surrogate pair",
    Conflict: "somebody else made the same thing first",
    Unavailable: "the database did not answer as it should; whether it acted is unknown",
    Internal: "the database refused a statement of ours",
}

# A deadlock, and a lock that was not to be had in time. Neither comes at a commit. And a statement that a migration has
# overtaken, by its class: its code says no more than "not supported".
_ROLLED_BACK: Final = frozenset({"40P01", "55P03"})
_TAKEN_BACK: Final = "somebody else held or changed what this needed; nothing was done, so it may be tried again"

# What the driver raises by itself, without the server.
_DRIVER: Final[tuple[tuple[type[BaseException], type[AgentOSError]], ...]] = (
    (asyncpg.InternalClientError, Unavailable),  # it lost track of a connection, as when the server stops just then
    (asyncpg.InterfaceWarning, Internal),
    (asyncpg.InterfaceError, Unavailable),  # the connection is closed, or being closed
    (OSError, Unavailable),  # TimeoutError and ConnectionError among them
)

_FOREIGN: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


def error_class(kind: type[BaseException]) -> type[AgentOSError] | None:
    """Which of ours an exception class becomes; None for one that is not the database's business."""
    sqlstate = getattr(kind, "sqlstate", None)
    if issubclass(kind, asyncpg.PostgresError) and sqlstate is not None:
        return _CODES.get(sqlstate) or _CLASSES.get(sqlstate[:2])
    if issubclass(kind, asyncpg.InterfaceError) and issubclass(kind, ValueError):
        return Internal  # a parameter of the wrong type, or a DSN that makes no sense
    for known, ours in _DRIVER:
        if issubclass(kind, known):
            return ours
    # The bare bases, which carry whatever SQLSTATE the driver has no class for.
    return Internal if issubclass(kind, asyncpg.PostgresError) else None


class Moved(Conflict):
    """The tenant does not live in this database any more; nothing was done. A worker is fenced by it."""

    default_code = "fenced"

    @property
    def home(self) -> str:
        """Where it went from here."""
        return str(self.details["home"])


def translate(error: BaseException) -> AgentOSError | None:
    """Our error for `error`; None when it isn't the database's."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate == _MOVED:
        return Moved(
            "the tenant lives in another database; nothing was done here",
            details={"home": getattr(error, "detail", None) or ""},
        )
    if sqlstate == _ELSEWHERE:
        return Conflict("the tenant lives in another database, or is on its way to one; move it to 'shared' first")
    ours = error_class(type(error))
    if isinstance(error, asyncpg.PostgresError) and sqlstate is not None:
        ours = _CODES.get(sqlstate) or _CLASSES.get(sqlstate[:2], Internal)
    if isinstance(error.__cause__, UnicodeEncodeError):
        ours = InvalidArgument
    if ours is None:
        return None
    shown = f" (SQLSTATE {sqlstate})" if sqlstate else f" ({type(error).__name__})"
    if sqlstate in _ROLLED_BACK or isinstance(error, asyncpg.InvalidCachedStatementError):
        return Unavailable(_TAKEN_BACK + shown, details={"rolled_back": True})
    return ours(_TEXTS[ours] + shown)


def rolled_back(error: BaseException) -> bool:
    """Whether the database itself took the transaction back, because of others: it is known that nothing was done."""
    return isinstance(error, Unavailable) and bool(error.details.get("rolled_back"))


@contextmanager
def translated() -> Iterator[None]:
    """Raise ours in place of the database's; the cause is kept."""
    try:
        yield
    except AgentOSError:
        raise
    except _FOREIGN as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error
