"""Where texts are looked through: here, or, where that would hold up everybody else, in another process."""

import asyncio
from collections.abc import Callable
from typing import Final

from ports.context import AuthContext
from ports.messages import Json
from ports.pii import Finder, PiiCapabilities, PiiDetector, Span
from stack_b.inspection import jobs
from stack_b.inspection.effort import MOST_HERE, NEVER_DEAR, effort, effort_of
from stack_b.inspection.processes import Processes
from stack_b.inspection.turns import Turns
from stack_b.policies.desk import Ruled
from stack_b.policy import Decision, decide
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.stream import MAX_HELD

AT_A_STRETCH: Final = MAX_HELD // 2
"""Characters of long texts that are looked at here before others have a turn."""


class Patient:
    """`detector`, whose long texts are looked at elsewhere, and others have a turn between those that are not."""

    def __init__(self, detector: PiiDetector, processes: Processes) -> None:
        self._detector = detector
        self._processes = processes
        self._finder = detector.elsewhere()
        self._at_once = self._finder if detector.capabilities.at_once else None
        self._looked_at = 0
        self.capabilities: PiiCapabilities = detector.capabilities

    def elsewhere(self) -> Finder | None:
        return self._finder

    def at_once(self, text: str) -> tuple[Span, ...] | None:
        """What `detect` finds (PII-7), where that is no dear text and the detector needs not be awaited."""
        return self._at_once(text) if self._at_once is not None and len(text) < NEVER_DEAR else None

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        if len(text) < NEVER_DEAR:
            return await self._detector.detect(auth, text)
        # What a stream holds back is never longer, and is waited for by its reader.
        if len(text) > MAX_HELD and self._finder is not None and effort_of(text) > MOST_HERE:
            return await self._processes.run(auth.tenant, jobs.found, self._finder, text)
        self._looked_at += len(text)
        if self._looked_at > AT_A_STRETCH:
            self._looked_at = 0
            await asyncio.sleep(0)
        return await self._detector.detect(auth, text)


class Inspector:
    """What a request says is decided on."""

    def __init__(self, pii: PiiDetector, processes: Processes) -> None:
        self._pii = pii
        self._processes = processes
        self._finder = pii.elsewhere()
        self._turns = Turns()

    async def looks_elsewhere(self, auth: AuthContext, members: Json, weight: int) -> bool:
        """`is_dear`. What is not, and not short either, is looked through here, and waits for its tenant's turn."""
        dear = self.is_dear(members, weight)
        if weight > NEVER_DEAR and not dear:
            await self._turns.take(auth.tenant)
        return dear

    def is_dear(self, members: Json, weight: int) -> bool:
        """Whether it is looked through elsewhere. `weight` is what `weight.check_weight` has found."""
        return weight > NEVER_DEAR and self._finder is not None and effort(members) > MOST_HERE

    async def decide(
        self,
        auth: AuthContext,
        members: Json,
        rules: PiiRules,
        texts: tuple[str, ...] | None = None,
        *,
        dear: bool,
    ) -> Decision:
        """`policy.decide`. Raises like it, and like `Processes.run`."""
        if dear:
            return await self._processes.run(auth.tenant, jobs.decided, self._finder, auth, members, rules)
        return await decide(self._pii, auth, members, rules, texts)

    async def ruled(self, auth: AuthContext, members: Json, ruled: Callable[..., Ruled]) -> Ruled:
        """What `ruled` says once it has the `texts` of a dear one. Raises like `Processes.run`."""
        texts = await self._processes.run(auth.tenant, jobs.read, members)
        # RE2 searches beside Python.
        return await asyncio.to_thread(ruled, texts=texts)
