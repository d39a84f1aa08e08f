"""Records on their way to the log: gathered for a moment, written in batches, one call per tenant at a time.

What the log can't take now waits here, up to a limit; beyond it the oldest that was not denied is dropped, and it says so.
What it refuses for good is looked for in smaller and smaller batches, so that one record takes no other with it.
Nobody waits for a record but those who were denied.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.ids import TenantId
from ports.request_log import MAX_RECORDS, RequestLog, Written

GATHER_S: Final = 0.2
"""How long a record waits for company."""
MAX_WAITING: Final = 20_000
"""Of all tenants: some 20 MiB."""
DENIAL_WAIT_S: Final = 2.0
"""How long a refusal waits until it is in the audit; after that it is told all the same, and its record goes on waiting."""
RETRY: Final = timedelta(seconds=1)
REFUSED_IN_A_ROW: Final = 8
"""So many records, each by itself, and it is not they that are wrong: then the rest is refused as it is."""
DRAIN_S: Final = 5.0

logger = logging.getLogger("agentos.gateway")


class _Tenant:
    def __init__(self, auth: AuthContext) -> None:
        self.auth = auth
        self.records: list[Written] = []
        self.most = MAX_RECORDS
        """In the next batch: fewer while one that the log refuses is looked for."""
        self.refused = 0
        """In a row, each by itself."""
        self.urgent = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.waiting: dict[str, asyncio.Event] = {}
        """Denials that somebody waits for, by request."""


class RecordWriter:
    def __init__(self, log: RequestLog, clock: Clock, dropped: Callable[[int], None] = lambda _: None) -> None:
        self._log = log
        self._clock = clock
        self._dropped = dropped
        self._tenants: dict[TenantId, _Tenant] = {}
        self._waiting = 0
        self._closing = False

    def note(self, auth: AuthContext, written: Written) -> None:
        """Returns at once."""
        tenant = self._tenants.get(auth.tenant)
        if tenant is None:
            tenant = self._tenants[auth.tenant] = _Tenant(auth)
        tenant.records.append(written)
        self._waiting += 1
        if self._waiting > MAX_WAITING:
            self._drop()
        if len(tenant.records) >= MAX_RECORDS:
            tenant.urgent.set()
        if tenant.task is None:
            tenant.task = asyncio.create_task(self._written(tenant))

    async def denied(self, auth: AuthContext, written: Written) -> None:
        """Returns once it is in the audit, or can't be for now."""
        self.note(auth, written)
        tenant = self._tenants[auth.tenant]
        done = tenant.waiting[written.record.id] = asyncio.Event()
        tenant.urgent.set()
        try:
            async with asyncio.timeout(DENIAL_WAIT_S):
                await done.wait()
        except TimeoutError:
            logger.warning("record.denial_waits", extra={"tenant_id": auth.tenant, "request_id": written.record.id})
        finally:
            tenant.waiting.pop(written.record.id, None)

    async def drain(self) -> None:
        """Write what is left, once, before the log closes."""
        self._closing = True
        tasks = [tenant.task for tenant in self._tenants.values() if tenant.task is not None]
        for tenant in self._tenants.values():
            tenant.urgent.set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._lost(self._waiting)

    async def _written(self, tenant: _Tenant) -> None:
        while tenant.records:
            if not self._closing and tenant.most == MAX_RECORDS:
                try:
                    async with asyncio.timeout(GATHER_S):
                        await tenant.urgent.wait()
                except TimeoutError:
                    pass
            tenant.urgent.clear()
            batch = tenant.records[: tenant.most]
            try:
                await self._log.write(tenant.auth, batch)
            except AgentOSError as error:
                if error.retryable:
                    # Writing twice changes nothing (REQ-1), so an unknown outcome may be tried again.
                    await self._clock.sleep(RETRY)
                    continue
                if len(batch) > 1 and tenant.refused < REFUSED_IN_A_ROW:
                    tenant.most = len(batch) // 2
                    continue
                tenant.refused = tenant.refused + 1 if len(batch) == 1 else 0
                if tenant.refused >= REFUSED_IN_A_ROW:
                    tenant.most = MAX_RECORDS
                self._dropped(len(batch))
                logger.error(  # noqa: TRY400 - the code says it; a stack would not
                    "record.refused", extra={"tenant_id": tenant.auth.tenant, "code": error.code, "count": len(batch)}
                )
            else:
                tenant.refused, tenant.most = 0, min(2 * tenant.most, MAX_RECORDS)
            # Some of it may have been dropped meanwhile.
            gone = {one.record.id for one in batch}
            left = [one for one in tenant.records if one.record.id not in gone]
            self._waiting -= len(tenant.records) - len(left)
            tenant.records = left
            for request in gone & tenant.waiting.keys():
                tenant.waiting[request].set()
        tenant.task = None
        del self._tenants[tenant.auth.tenant]

    def _drop(self) -> None:
        """The oldest that was not denied, of the tenant that has the most."""
        tenant = max(self._tenants.values(), key=lambda one: len(one.records))
        at = next((n for n, one in enumerate(tenant.records) if not one.record.denied), 0)
        del tenant.records[at]
        self._waiting -= 1
        self._lost(1)

    def _lost(self, count: int) -> None:
        if count:
            logger.warning("record.dropped", extra={"count": count})
            self._dropped(count)
