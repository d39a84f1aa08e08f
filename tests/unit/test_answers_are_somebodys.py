"""An answer under way, or kept for a repeat, is its principal's: no other of the tenant, of another namespace or of another
tenant joins it, whatever says that it is the same request."""

from collections.abc import Mapping
from typing import Final

import anyio
import httpx
import pytest
from msgspec.structs import replace

from ports.context import AuthContext
from tests.support.held_backend import HeldBackend
from tests.support.stack_b import CALLERS, StackB, Tokens, stack_b
from tests.unit.test_stack_b_steps import ASKED, until

pytestmark = [pytest.mark.anyio]

CHAT: Final = "/v1/chat/completions"
LAB: Final = replace(CALLERS["acme"], namespace="lab")
STRANGERS: Final[Mapping[str, AuthContext]] = {**CALLERS, "lab": LAB}
FIRST: Final = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"}
WAYS: Final = [
    pytest.param({"idempotency-key": "once"}, {"idempotency-key": "once"}, id="a key"),
    pytest.param({"x-step-key": "run_1:1"}, {"x-step-key": "run_1:1"}, id="a step"),
    pytest.param(FIRST, {**FIRST, "x-stainless-retry-count": "1"}, id="a retry"),
]


async def asked(node: StackB, who: str, headers: Mapping[str, str], *, stream: bool) -> httpx.Response:
    return await node.post(CHAT, {**ASKED, "stream": stream}, who, **headers)


def shared(answer: httpx.Response) -> bool:
    assert answer.status_code == 200, answer.text
    return '"replayed":true' in answer.text or '"joined":true' in answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("first", "again"), WAYS)
@pytest.mark.parametrize("who", ["colleague", "lab", "globex"])
async def test_a_stranger_with_the_same_request_joins_nothing(
    who: str, first: Mapping[str, str], again: Mapping[str, str], *, stream: bool
) -> None:
    backend, answers = HeldBackend(), dict[str, httpx.Response]()
    async with stack_b(backend, verifier=Tokens(STRANGERS)) as node:

        async def ask(asker: str, headers: Mapping[str, str]) -> None:
            answers[asker] = await asked(node, asker, headers, stream=stream)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "acme", first)
            await until(lambda: backend.calls == 1)
            group.start_soon(ask, who, again)
            await until(lambda: backend.calls == 2)
            backend.let_go.set()
        later = await asked(node, who, again, stream=stream)

    assert [shared(answers["acme"]), shared(answers[who]), shared(later)] == [False, False, True]
    assert backend.calls == 2
