"""A call's entry in the journal of replies: opened, kept, and completed with what only the gateway may read."""

import base64
import logging
from datetime import timedelta
from typing import Final

import msgspec

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict
from ports.messages import Json
from ports.reply_journal import Opened, ReplyJournal, Ticket
from stack_b.once import Once
from stack_b.vault import Vault

LEASE: Final = timedelta(seconds=15)
"""How long a step waits for a process that was lost."""
JOURNAL_RETRY: Final = timedelta(milliseconds=500)
JOURNAL_PATIENCE: Final = timedelta(seconds=60)
"""How long a paid reply waits for a journal that is away, before it is given out unwritten."""

_PURPOSE: Final = "reply"

logger = logging.getLogger("agentos.gateway")


class Entries:
    def __init__(self, journal: ReplyJournal, vault: Vault, clock: Clock) -> None:
        self._journal = journal
        self._vault = vault
        self._clock = clock

    async def open(self, auth: AuthContext, once: Once, digest: str) -> Opened:
        """Raises `Conflict` (`idempotency_key_reused`) where the key is another request's."""
        try:
            return await self._journal.open(auth, once.key, digest, lease=LEASE, keep=once.keep)
        except Conflict as error:
            if error.code == "idempotency_key_reused":
                raise reused(once) from error
            raise

    async def extend(self, auth: AuthContext, ticket: Ticket) -> bool:
        """Whether its call was cancelled meanwhile. Raises like the journal."""
        return await self._journal.extend(auth, ticket, lease=LEASE)

    async def cancel(self, auth: AuthContext, key: str) -> bool:
        return await self._journal.cancel(auth, key)

    async def complete(self, auth: AuthContext, ticket: Ticket, once: Once, outcome: Json) -> None:
        """Write the outcome down, however long the journal is away: until then it is in this process only.

        Afterwards it is told in any case. Keeping it back would lose for sure what telling it may save.
        """
        sealed = self._sealed(auth, once, outcome)
        end = self._clock.monotonic() + JOURNAL_PATIENCE.total_seconds()
        while True:
            try:
                await self._journal.complete(auth, ticket, sealed)
            except AgentOSError as error:
                if error.retryable and self._clock.monotonic() < end:
                    await self._clock.sleep(JOURNAL_RETRY)
                    continue
                logger.error(  # noqa: TRY400 - the code says it; a stack would not
                    "step.not_journaled", extra={"tenant_id": auth.tenant, "code": error.code}
                )
            return

    async def abandon(self, auth: AuthContext, ticket: Ticket, *, maybe_made: bool) -> None:
        try:
            await self._journal.abandon(auth, ticket, maybe_made=maybe_made)
        except AgentOSError as error:
            # The lease ends by itself, and then says the most careful thing.
            logger.warning("step.not_abandoned", extra={"tenant_id": auth.tenant, "code": error.code})

    def _sealed(self, auth: AuthContext, once: Once, outcome: Json) -> Json:
        """What the journal is given. It holds what the client reads, with its own values: only the gateway may read it."""
        sealed = self._vault.seal(auth.tenant, _PURPOSE, f"{auth.namespace}\0{once.key}", msgspec.json.encode(outcome))
        return {"sealed": base64.b64encode(sealed).decode()}

    def outcome(self, auth: AuthContext, once: Once, outcome: Json) -> dict[str, Json]:
        """What was written down."""
        if "sealed" not in outcome:
            # Of a version that did not seal.
            found: dict[str, Json] = outcome
            return found
        sealed = base64.b64decode(outcome["sealed"])
        text = self._vault.open(auth.tenant, _PURPOSE, f"{auth.namespace}\0{once.key}", sealed)
        return msgspec.json.decode(text, type=dict[str, Json])


def reused(once: Once) -> Conflict:
    return Conflict(
        f"{once.named} belongs to another request; another request has another key", code="idempotency_key_reused"
    )
