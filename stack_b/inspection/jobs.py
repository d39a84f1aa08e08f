"""What is done in another process: each of these is sent there by its name, and what it is given and gives as bytes."""

import asyncio

from ports.context import AuthContext
from ports.messages import Json
from ports.pii import Finder, PiiCapabilities, Span
from stack_b.policies.rules import texts_of
from stack_b.policy import Decision, decide
from stack_b.redaction.rules import PiiRules


class Found:
    """PiiDetector by a finder, in the process that runs it."""

    capabilities = PiiCapabilities()

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def elsewhere(self) -> Finder | None:
        return self._finder

    async def detect(self, _auth: AuthContext, text: str) -> tuple[Span, ...]:
        return self._finder(text)


def decided(finder: Finder, auth: AuthContext, value: Json, rules: PiiRules) -> Decision:
    """`policy.decide`."""
    return asyncio.run(decide(Found(finder), auth, value, rules))


def found(finder: Finder, text: str) -> tuple[Span, ...]:
    return finder(text)


def read(members: dict[str, Json]) -> tuple[str, ...]:
    """What policies read of a request, in each way to read it."""
    return texts_of(members)
