"""An issuer that is taken out of the file while its keys are fetched."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.token_auth import jwt
from adapters.token_auth.foreign import ForeignIssuers
from ports.egress import EgressPort
from ports.errors import Unauthenticated, Unavailable
from tests.support.oidc import OWN, trusting_node


class NeverAnswers:
    """A way out that hears nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()

    async def fetch(self, *_: object, **__: object) -> Any:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@pytest.mark.anyio
async def test_nobody_is_asked_any_longer_once_an_issuer_is_taken_out(tmp_path: Path) -> None:
    async with trusting_node(tmp_path) as node:
        egress = NeverAnswers()
        foreign = ForeignIssuers(
            tmp_path / "issuers.json",
            own=OWN,
            surface="stack-a",
            egress=cast("EgressPort", egress),
            clock=node.clock,
        )
        presented = jwt.present(node.issuer.token())
        waiting = asyncio.create_task(foreign.verified(presented))
        await egress.asked.wait()

        await node.trust()
        with pytest.raises(Unauthenticated):
            await foreign.verified(presented)
        await foreign.aclose()

        assert egress.ended.is_set()
        with pytest.raises(Unavailable):
            await waiting
