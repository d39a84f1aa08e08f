"""Signs the heads of the audit every minute, for as long as the admin API runs.

There, because it is the one service that runs nothing of a tenant's and answers nobody but administrators. Where two of it
run (a redeploy), the file's lock lets one sign.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

from msgspec import Struct

from deploy.audit_heads import HeadsFile, Signed
from ports.audit import MAX_STRETCH, SIGN, AuditLog, Head
from ports.audit_rules import chain_name, chain_named
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable
from ports.ids import PrincipalId, TenantId

EVERY: Final = timedelta(minutes=1)

SIGNER: Final = AuthContext(tenant=TenantId("tnt_system"), principal=PrincipalId("svc_admin"), scopes=frozenset({SIGN}))

logger = logging.getLogger("agentos.audit")


class Plan(Struct, frozen=True, kw_only=True):
    sign: tuple[Head, ...]
    refused: tuple[str, ...]
    """Chains whose head contradicts what was signed before."""
    silent: tuple[str, ...] = ()
    """Homes that did not answer: of their chains nothing is said."""


def plan(signed: Signed, heads: list[Head], silent: tuple[str, ...] = ()) -> Plan:
    """Which heads have moved on, and which have moved where none can: back, or aside."""
    sign, refused = [], []
    there = {chain_name(head.tenant, head.home): head for head in heads}
    for name, head in there.items():
        seq, known = signed.newest_of(name)
        if head.seq > seq:
            sign.append(head)
        elif head.seq < seq or head.hash != known:
            refused.append(name)
    refused += sorted(name for name in signed.heads if name not in there and chain_named(name)[1] not in silent)
    return Plan(sign=tuple(sign), refused=tuple(refused), silent=silent)


class Signer:
    def __init__(self, log: AuditLog, file: HeadsFile, clock: Clock) -> None:
        self._log = log
        self._file = file
        self._clock = clock

    async def sign(self) -> Plan | None:
        """One round; None when another process has it."""
        with self._file.held() as ours:
            if not ours:
                return None
            signed = await asyncio.to_thread(self._file.read)
            if signed.bad:
                # Adding to it would only bury what happened.
                logger.error("audit.heads_damaged", extra={"reason": signed.bad})
                return None
            decided = plan(signed, *await self._heads())
            for name in decided.refused:
                logger.error("audit.head_contradicts", extra={"tenant_id": name})
            for home in decided.silent:
                logger.warning("audit.not_signed", extra={"reason": f"the home {home!r} does not answer"})
            if decided.sign:
                await asyncio.to_thread(self._file.append, self._clock.now(), signed.last, decided.sign)
            await asyncio.to_thread(self._file.copy)
            return decided

    async def _heads(self) -> tuple[list[Head], tuple[str, ...]]:
        """And the homes that did not answer: the others' heads are signed all the same."""
        found, silent = await all_heads(self._log), []
        for home in self._log.homes:
            try:
                found += await all_heads(self._log.at(home))
            except Unavailable:
                silent.append(home)
        return found, tuple(silent)

    async def run(self) -> None:
        while True:
            try:
                await self.sign()
            except (AgentOSError, OSError) as error:
                logger.warning("audit.not_signed", extra={"reason": str(error)})
            await self._clock.sleep(EVERY)


async def all_heads(log: AuditLog) -> list[Head]:
    """Of one storage."""
    found: list[Head] = []
    while part := await log.heads(SIGNER, after=found[-1].tenant if found else None, limit=MAX_STRETCH):
        found += part
    return found


@asynccontextmanager
async def signing(signer: Signer) -> AsyncIterator[None]:
    """Signs for as long as the block runs, and once more at its end."""
    task = asyncio.create_task(signer.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        with suppress(AgentOSError, OSError):
            await signer.sign()
