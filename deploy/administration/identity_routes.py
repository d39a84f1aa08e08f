"""The routes of the part about principals and keys, with their scope, and what the OpenAPI document says of them."""

from collections.abc import Mapping
from typing import Final

from deploy.administration import identity_wire as wire
from deploy.administration.routes import DEFAULT_PAGE, TENANT, template
from ports.context import ADMIN_PLATFORM
from ports.http.openapi import Operation, Parameter
from ports.http.routes import Route
from ports.run_state import MAX_PAGE

PRINCIPALS: Final = TENANT + "/principals"
ACTING: Final = TENANT + "/acting"
KEYS: Final = TENANT + "/keys"
KEY: Final = KEYS + "/{key_id:str}"
ROTATE: Final = template(KEY) + ":rotate"
REVOKE: Final = template(KEY) + ":revoke"

_PAGE: Final = ("limit", "cursor")

ROUTES: Final = (
    Route(method="GET", template=template(PRINCIPALS), access=ADMIN_PLATFORM, query=_PAGE),
    Route(method="PUT", template=template(PRINCIPALS), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(ACTING), access=ADMIN_PLATFORM, query=()),
    Route(method="PUT", template=template(ACTING), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(KEYS), access=ADMIN_PLATFORM, query=_PAGE),
    Route(method="POST", template=template(KEYS), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="POST", template=ROTATE, access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="POST", template=REVOKE, access=ADMIN_PLATFORM, mutation=True, query=()),
)

LIMITS: Final[Mapping[str, int]] = {
    "max_key_days": wire.MAX_DAYS,
    "max_key_grace_minutes": wire.MAX_GRACE_MINUTES,
}

PAGES: Final = (
    Parameter(
        name="limit",
        description="Items on a page.",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    ),
    Parameter(name="cursor", description="`next_cursor` of the page before."),
)
ONCE: Final = (
    "The secret is in this answer and nowhere else. An Idempotency-Key that was used is a `conflict`, which names the key "
    "that was made: revoke it where its answer was lost."
)

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", template(PRINCIPALS)): Operation(
        summary="Principals that something is kept of",
        tag="principals",
        response=wire.PrincipalPage,
        parameters=PAGES,
        codes=("not_found",),
    ),
    ("PUT", template(PRINCIPALS)): Operation(
        summary="Bar a principal, or bound what its keys and tokens do",
        description="In force within 5 s at every door. Nothing here lets anybody do more than it was issued.",
        tag="principals",
        request=wire.PutPrincipal,
        response=wire.PrincipalView,
        codes=("not_found",),
    ),
    ("GET", template(ACTING)): Operation(
        summary="Who of other tenants may act for this one",
        tag="principals",
        response=wire.ActingList,
        codes=("not_found",),
    ),
    ("PUT", template(ACTING)): Operation(
        summary="Let a service of another tenant act for this one, or not any more",
        description="Its token needs the scope `tenant:act_as` too, and it names the tenant in `X-Tenant-Id`.",
        tag="principals",
        request=wire.PutActing,
        response=wire.ActingList,
        codes=("not_found",),
    ),
    ("GET", template(KEYS)): Operation(
        summary="A tenant's API keys, without their secrets",
        tag="keys",
        response=wire.KeyPage,
        parameters=PAGES,
        codes=("not_found",),
    ),
    ("POST", template(KEYS)): Operation(
        summary="Issue an API key",
        description=ONCE,
        tag="keys",
        request=wire.IssueKey,
        response=wire.IssuedKey,
        status=201,
        codes=("not_found", "conflict", "too_many_keys"),
    ),
    ("POST", ROTATE): Operation(
        summary="Make a key's successor, and end the key after a grace",
        description=ONCE + " A key that has ended is a `conflict`. The body may be left out.",
        tag="keys",
        request=wire.RotateKey,
        request_optional=True,
        response=wire.IssuedKey,
        status=201,
        codes=("not_found", "conflict", "too_many_keys"),
    ),
    ("POST", REVOKE): Operation(
        summary="End a key; it is refused within 5 s",
        description="A key that has ended already stays so. The body may be left out.",
        tag="keys",
        request=wire.RevokeKey,
        request_optional=True,
        response=wire.Revoked,
        codes=("not_found",),
    ),
}
