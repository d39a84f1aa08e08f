"""What must stay in a storage of this process, and what of it is kept for less time: for whoever removes anything."""

from dataclasses import dataclass, field
from datetime import timedelta

from ports.ids import TenantId
from ports.privacy import DataClass, Hold


@dataclass(slots=True)
class Holds:
    """A table of a `Store`."""

    rows: dict[str, tuple[TenantId, Hold]] = field(default_factory=dict)
    """Those in force, by id."""
    requested: dict[str, Hold] = field(default_factory=dict)
    """Those that were placed by a request with a key, by id; released or not."""
    days: dict[TenantId, dict[DataClass, int]] = field(default_factory=dict)

    def of(self, tenant: TenantId) -> tuple[Hold, ...]:
        return tuple(hold for owner, hold in self.rows.values() if owner == tenant)

    def holds(self, tenant: TenantId, subject: str) -> bool:
        """Whether it must stay. Of what nobody knows whose it is, whatever is held in the tenant may be part."""
        return any(not subject or hold.subject in {None, subject} for hold in self.of(tenant))

    def kept(self, tenant: TenantId, name: DataClass, most: timedelta) -> timedelta:
        """For how long the tenant's data of a class is kept, where the node keeps it for `most`."""
        days = self.days.get(tenant, {}).get(name)
        return most if days is None else min(most, timedelta(days=days))
