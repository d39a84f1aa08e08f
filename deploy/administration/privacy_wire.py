"""What requests about one's data say on the wire."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from ports.ids import PrincipalId, TenantId
from ports.privacy import MAX_REASON_CHARS, MAX_SUBJECT_CHARS, Counts, DataClass, Erasure, Hold

Subject = Annotated[
    str, Meta(min_length=1, max_length=MAX_SUBJECT_CHARS, description="A principal of the tenant, such as usr_ann.")
]


class CreateExport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subject: Subject


class SubjectExport(Struct, frozen=True, kw_only=True):
    subject: str
    export_file: str
    """Where it was written on the node. Kept prompts and answers are sealed in it: the command opens them."""
    export_sha256: str
    export_rows: int
    tenant_id: TenantId
    correlation_id: str


class Erase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subject: Subject
    confirm: Annotated[str, Meta(max_length=MAX_SUBJECT_CHARS, description="The subject's name once more.")]


class ErasureLine(Struct, frozen=True, kw_only=True):
    name: str
    """`erased:` and the SHA-256 of the tenant's id, a space and the subject."""
    status: Literal["erasing", "erased"]
    """`erasing`: there is more to remove; send the same request again to go on."""
    begun_at: datetime
    erased_at: datetime | None
    counts: Counts


class ErasureView(ErasureLine, frozen=True, kw_only=True):
    tenant_id: TenantId
    correlation_id: str


class ErasureList(Struct, frozen=True, kw_only=True):
    items: tuple[ErasureLine, ...]
    tenant_id: TenantId
    correlation_id: str


class PlaceHold(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subject: Annotated[str, Meta(max_length=MAX_SUBJECT_CHARS)] | None
    """Null: all of the tenant."""
    reason: Annotated[
        str, Meta(min_length=1, max_length=MAX_REASON_CHARS, description="Such as the court's file number.")
    ]


class HoldLine(Struct, frozen=True, kw_only=True):
    id: str
    subject: PrincipalId | None
    """Null: all of the tenant."""
    reason: str
    placed_by: PrincipalId
    placed_at: datetime


class HoldView(HoldLine, frozen=True, kw_only=True):
    tenant_id: TenantId
    correlation_id: str


class HoldList(Struct, frozen=True, kw_only=True):
    items: tuple[HoldLine, ...]
    tenant_id: TenantId
    correlation_id: str


class PatchRetention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    days: Annotated[
        dict[DataClass, int | None],
        Meta(description="By class of data; null: as long as the node keeps it. What is not named stays as it is."),
    ]


class RetentionView(Struct, frozen=True, kw_only=True):
    days: dict[DataClass, int]
    """The tenant's own rules; what is not there is kept for as long as the node does."""
    tenant_id: TenantId
    correlation_id: str


def erasure_line(one: Erasure) -> ErasureLine:
    return ErasureLine(
        name=one.name, status=one.status, begun_at=one.begun_at, erased_at=one.erased_at, counts=one.counts
    )


def hold_line(one: Hold) -> HoldLine:
    return HoldLine(id=one.id, subject=one.subject, reason=one.reason, placed_by=one.placed_by, placed_at=one.placed_at)
