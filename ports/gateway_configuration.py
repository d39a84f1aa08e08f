"""GatewayConfigurations: the configuration of this node's model gateway, in versions that are only ever added to.

The newest version is the one in force. Going back adds one, with what an earlier one said: numbers only grow, so that
whoever follows needs no more than the highest it has seen. A version is the node's, not a tenant's. What a document means
is the gateway's affair; here it is JSON.

Clauses (each has a test in `conformance.gateway_configuration`):

* CFG-1  `put` and `restore` add a version. Numbers run 1, 2, 3 … without gaps, and the newest is in force at once.
* CFG-2  With an `if_match` that is not the newest number (0: there is none) they raise `Conflict`, whose details name the
         newest as `current`, and change nothing. Of many at the same time with the same `if_match` one wins.
* CFG-3  A version says what it was given, exactly: document, digest and comment; and who made it, and when.
* CFG-4  `restore` adds a version with the document and the digest of an earlier one, and says which. Without such a version
         it raises `NotFound` and changes nothing.
* CFG-5  `current` gives the newest version; None when there is none, or when it is not newer than `newer_than`.
* CFG-6  `get` gives a version, however old; `NotFound` where there is none.
* CFG-7  `list_versions` names all versions, newest first, without their documents. One that is added meanwhile changes
         nothing on the pages behind a cursor.
* CFG-8  Repeating `put` or `restore` with the key of an earlier one gives the version that that one made, and adds none,
         whatever `if_match` says by now; with another document, version or comment it raises `Conflict`
         (`idempotency_key_reused`). A key is its principal's: another's is another.
* CFG-9  Every call needs the scope `admin:platform`; for `current` and `get`, `gateway:follow` is enough.
* CFG-10 A document of more than `MAX_DOCUMENT_BYTES`, or a comment of more than `MAX_COMMENT_CHARS`, raises
         `InvalidArgument` and changes nothing.
* CFG-11 What was added is there for a store opened anew on the same storage.
"""

import hashlib
from datetime import datetime
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from ports.context import ADMIN_PLATFORM, GATEWAY_FOLLOW, AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId
from ports.messages import Json, Page

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_COMMENT_CHARS: Final = 500
MAX_PAGE: Final = 200


class Draft(Struct, frozen=True, kw_only=True):
    """What a new version shall say."""

    document: Json
    digest: str
    """Equal for documents that mean the same; whoever knows what they mean makes it."""
    comment: str = ""


class Summary(Struct, frozen=True, kw_only=True):
    version: int
    digest: str
    comment: str
    restores: int | None
    """The version that this one says again."""
    created_at: datetime
    tenant: TenantId
    """Whose principal made it."""
    principal: PrincipalId


class Version(Summary, frozen=True, kw_only=True):
    document: Json


class GatewayConfigurations(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def put(self, auth: AuthContext, draft: Draft, *, if_match: int | None, key: str) -> Version:
        """`if_match` None: whatever is there. `key` makes repeating safe."""
        ...

    async def restore(
        self, auth: AuthContext, version: int, *, comment: str, if_match: int | None, key: str
    ) -> Version: ...

    async def current(self, auth: AuthContext, *, newer_than: int = 0) -> Version | None: ...

    async def get(self, auth: AuthContext, version: int) -> Version: ...

    async def list_versions(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Summary]: ...


def require_follower(auth: AuthContext) -> None:
    """Raise `PermissionDenied` unless the caller may read what is in force."""
    if GATEWAY_FOLLOW not in auth.scopes:
        auth.require(ADMIN_PLATFORM)


def check_draft(document: Json, comment: str) -> None:
    """Raise `InvalidArgument` for what is too large, or no JSON."""
    check_comment(comment)
    try:
        size = len(msgspec.json.encode(document))
    except (UnicodeEncodeError, TypeError, OverflowError):
        raise InvalidArgument("the document can't be written as JSON") from None
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"the document has {size:,} bytes; at most {MAX_DOCUMENT_BYTES:,} are kept")


def check_comment(comment: str) -> None:
    if len(comment) > MAX_COMMENT_CHARS or "\x00" in comment:
        raise InvalidArgument(f"a comment has at most {MAX_COMMENT_CHARS} characters, and no NUL")


def request_of(*said: Json) -> str:
    """What repeats under one key must have in common."""
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def moved_on(current: int, if_match: int | None) -> Conflict:
    return Conflict(
        f"version {current} is in force by now, not {if_match}: look at it, then send your change again",
        details={"current": current},
    )


def no_version(version: int) -> NotFound:
    return NotFound(f"there is no version {version} of the gateway's configuration")


def key_reused() -> Conflict:
    return Conflict(
        "this Idempotency-Key belongs to another change of the gateway's configuration; send a new key",
        code="idempotency_key_reused",
    )
