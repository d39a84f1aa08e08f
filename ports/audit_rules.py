"""The arithmetic of the audit's chain, and what can be told from it: pure.

`h = sha256(previous hash ‖ number as 8 bytes, big end first ‖ form of the entry)`; before the first stand 32 zero bytes.
The form is made of fields, each as its length in bytes, a colon, its bytes in UTF-8 and a comma, so that no two entries
have the same; the moment is in microseconds since 1970.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from ports.audit import ERASED, Entry, Head, Link, Wanted
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId, is_tenant_id

FIRST_HASH: Final = "00" * 32
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_RANGES: Final = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")


def form(entry: Entry) -> bytes:
    said = (
        entry.tenant, entry.id, str((entry.at - _EPOCH) // _MICROSECOND), entry.namespace, entry.actor_tenant,
        entry.principal, entry.action, entry.subject, entry.correlation_id, entry.outcome, entry.detail,
    )  # fmt: skip
    return b"".join(b"%d:%b," % (len(raw), raw) for raw in (text.encode("utf-8", "surrogatepass") for text in said))


def link(previous: str, seq: int, entry: Entry) -> str:
    return hashlib.sha256(bytes.fromhex(previous) + seq.to_bytes(8, "big", signed=True) + form(entry)).hexdigest()


def matches(entry: Entry, wanted: Wanted) -> bool:
    action = wanted.action
    return (
        (
            action is None
            or entry.action == action
            or (action.endswith("*") and entry.action.startswith(action.removesuffix("*")))
        )
        and wanted.principal in {None, entry.principal}
        and wanted.subject in {None, entry.subject}
        and wanted.outcome in {None, entry.outcome}
        and (wanted.since is None or entry.at >= wanted.since)
        and (wanted.until is None or entry.at < wanted.until)
    )


def is_of(entry: Entry, principal: PrincipalId) -> bool:
    """Whether it says what the principal did, or what was done to it. A namesake of another tenant is somebody else."""
    return entry.subject == principal or (
        entry.principal == principal and entry.actor_tenant == whose(entry.tenant, principal)
    )


def whose(tenant: TenantId, principal: PrincipalId) -> TenantId:
    """Whose principal that is, by its name: see `AuthContext.acting_for`."""
    home, slash, _ = principal.partition("/")
    return TenantId(home) if slash and is_tenant_id(home) else tenant


def moment(name: str, text: str | None) -> datetime | None:
    """What somebody wrote for `since` or `until`, in UTC unless it says otherwise. Raises `InvalidArgument` with `name`."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        # A zone can carry a moment past the first or last that there is.
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{name} is a moment such as 2026-11-28 or 2026-11-28T04:00:00Z", details={"path": name}
        ) from None


def ranges(numbers: Iterable[int]) -> str:
    """As the entry of an erasure says which went: `3-7,12`. The numbers ascend."""
    islands: list[list[int]] = []
    for number in numbers:
        if islands and islands[-1][1] == number - 1:
            islands[-1][1] = number
        else:
            islands.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in islands)


def chain_name(tenant: str, home: str) -> str:
    """How signed heads and checks call a tenant's chain: `tnt_acme`, or `tnt_acme@eu1` in the home `eu1`."""
    return f"{tenant}@{home}" if home else tenant


def chain_named(name: str) -> tuple[TenantId, str]:
    """Tenant and home of a `chain_name`."""
    tenant, _, home = name.partition("@")
    return TenantId(tenant), home


class Verdict(Struct, frozen=True, kw_only=True):
    """What a check of one tenant's chain has found."""

    tenant: str
    home: str = ""
    checked: int
    """Links looked at."""
    erased: int
    signed: int
    """The highest number that a signature vouches for; 0: none does."""
    head: int
    bad: int | None = None
    """The first number that contradicts."""
    why: str = ""

    @property
    def good(self) -> bool:
        return self.bad is None


class Check:
    """Takes one tenant's links, from the first on, and compares them with themselves and with what was signed.

    `signed` are hashes by number that somebody outside the storage vouches for.
    """

    def __init__(self, tenant: str, signed: Mapping[int, str]) -> None:
        self._tenant = tenant
        self._signed = signed
        self._hash = FIRST_HASH
        self._seq = 0
        self._checked = 0
        self._missing: list[int] = []
        self._erased: list[tuple[int, int]] = []
        self._bad: tuple[int, str] | None = None

    def take(self, links: Iterable[Link]) -> None:
        """Whatever comes after the first contradiction is not looked at any more."""
        for one in links:
            if self._bad is not None:
                return
            self._bad = self._take(one)

    def _take(self, one: Link) -> tuple[int, str] | None:
        seq = self._seq + 1
        if one.seq != seq:
            return seq, f"number {seq} is missing: after {self._seq} comes {one.seq}"
        if one.entry is None:
            self._missing.append(seq)
        else:
            if one.entry.tenant != self._tenant:
                return seq, "the entry is another tenant's"
            if link(self._hash, seq, one.entry) != one.hash:
                return seq, "the entry, its place or the hash before it is not what was noted"
            if one.entry.action == ERASED and _RANGES.fullmatch(one.entry.detail):
                self._erased += (_range(text) for text in one.entry.detail.split(","))
        if self._signed.get(seq, one.hash) != one.hash:
            return seq, "the hash is not the one that was signed: this entry or one before it was written anew"
        self._seq, self._hash, self._checked = seq, one.hash, self._checked + 1
        return None

    def verdict(self, head: Head) -> Verdict:
        """After the last link. `head` is the storage's own word, or that of an export."""
        signed = max(self._signed, default=0)
        bad = self._bad or self._unexplained() or self._cut(head, signed)
        return Verdict(
            tenant=self._tenant,
            home=head.home,
            checked=self._checked,
            erased=len(self._missing),
            signed=signed,
            head=self._seq,
            bad=None if bad is None else bad[0],
            why="" if bad is None else bad[1],
        )

    def _unexplained(self) -> tuple[int, str] | None:
        """An entry that is gone though no erasure, later in the same chain, says that it went."""
        told = iter(sorted(self._erased))
        current = next(told, None)
        for seq in self._missing:
            while current is not None and current[1] < seq:
                current = next(told, None)
            if current is None or seq < current[0]:
                return seq, "the entry is gone, and no erasure tells of it"
        return None

    def _cut(self, head: Head, signed: int) -> tuple[int, str] | None:
        if signed > self._seq:
            return self._seq + 1, f"the chain ends at {self._seq}, but number {signed} was signed: its end was cut off"
        if head.seq > self._seq:
            return self._seq + 1, f"the chain ends at {self._seq}, but the storage's head is {head.seq}"
        if head.seq == self._seq and head.hash != self._hash:
            return self._seq, "the storage's head has another hash than the last link"
        return None


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)
