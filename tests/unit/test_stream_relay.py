"""A streamed answer on its way from its backend to the client, where something goes wrong between the two."""

import asyncio
import json
from typing import Any

import pytest

from ports.context import AuthContext
from ports.errors import Unavailable
from ports.pii import PiiCapabilities, Span
from stack_b.backends.chunk_reader import ChunkReader
from stack_b.backends.streamed import BROKE_OFF, TOO_LARGE, Streamed
from stack_b.chunks import written_out
from tests.support.scripted_upstream import delta
from tests.support.stack_b import stack_b
from tests.support.writing_backend import Writing
from tests.unit.test_chunk_runs import compact, decoded

DONE = b"data: [DONE]\n\n"

pytestmark = pytest.mark.anyio


class Fails:
    """A detector that can't tell, once it is asked for a text with `when` in it."""

    capabilities = PiiCapabilities()

    def __init__(self, when: str) -> None:
        self.when = when

    def elsewhere(self) -> None:
        """It is asked here."""

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        del auth
        if self.when in text:
            raise Unavailable("the detector is away")
        return ()


async def test_a_text_that_can_not_be_looked_at_is_not_its_backends_failure() -> None:
    backend = Writing(tokens=40, text="4 4 4\n", fails_after=None, stops_billing=True)
    async with stack_b(backend, pii=Fails("4 4 4")) as node:
        answers = [await node.chat(model="m-1", stream=True) for _ in range(8)]
        balance = await node.balance()

    for answer in answers:
        error = answer.json()["error"] if answer.status_code != 200 else _last(answer.text)["error"]
        assert error["code"] == "unavailable"
        # Were it taken for its backend's failure, the breaker would have opened by now.
        assert [one["reason"] for one in error["route"]["attempts"]] == ["cancelled"]
    assert balance.held == 0
    assert balance.settled > 0, "it was written all the same"


def _last(text: str) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    return frame


class Said:
    """What a backend sends, read by read; stands for its answer as well."""

    def __init__(self, *reads: bytes) -> None:
        self.reads = list(reads)
        self.released: list[str] = []

    async def ask(self) -> Any:
        return self

    async def piece(self, _: Any) -> bytes:
        return self.reads.pop(0) if self.reads else b""

    def release(self) -> None:
        self.released.append("release")

    def leave(self) -> None:
        self.released.append("leave")


def streamed(said: Said, most_bytes: int = 10_000) -> Streamed:
    return Streamed(
        ChunkReader(decoded),
        said.ask,
        said.piece,
        lambda what: Unavailable(what, code="upstream_error"),
        most_bytes=most_bytes,
    )


def event(text: str) -> bytes:
    return f"data: {compact(delta(content=text))}\n\n".encode()


async def texts_of(stream: Streamed, into: list[str]) -> None:
    async for pieces in stream:
        into += [chunk["choices"][0]["delta"]["content"] for chunk in written_out(pieces)]


@pytest.mark.parametrize("cut", range(0, 400, 7))
async def test_an_answer_in_two_reads_says_the_same_and_is_given_back_at_its_end(cut: int) -> None:
    data = event("a ") + event("b ") + DONE
    said = Said(*filter(None, [data[:cut], data[cut:]]))
    texts: list[str] = []

    await texts_of(streamed(said), texts)

    assert texts == ["a ", "b "]
    assert said.released == ["leave", "release"]


@pytest.mark.parametrize(
    ("reads", "most", "why"),
    [
        ([event("a ")], 10_000, BROKE_OFF),
        ([event("a "), event("b ") * 9], 400, TOO_LARGE),
        ([event("a "), b"data: {\n\n"], 10_000, "not JSON"),
    ],
    ids=["broken off", "too large", "no JSON"],
)
async def test_what_came_before_a_failure_is_said_and_the_answer_given_back(
    reads: list[bytes], most: int, why: str
) -> None:
    said = Said(*reads)
    texts: list[str] = []
    stream = streamed(said, most)

    with pytest.raises(Unavailable, match=why):
        await texts_of(stream, texts)

    assert texts == ["a "]
    assert said.released == ["release"]
    assert [pieces async for pieces in stream] == []


async def test_who_closes_it_early_ends_the_call_and_who_never_asks_makes_none() -> None:
    said = Said(event("a "), event("b "), DONE)
    stream = streamed(said)

    assert len(list(written_out(await anext(stream)))) == 1
    await stream.aclose()
    await stream.aclose()
    await streamed(unasked := Said()).aclose()

    assert said.released == ["release"]
    assert [pieces async for pieces in stream] == []
    assert unasked.released == []


async def test_who_is_cancelled_while_it_waits_ends_the_call() -> None:
    said = Said()
    waiting = asyncio.Event()

    async def never(_: Any) -> bytes:
        waiting.set()
        await asyncio.Event().wait()
        return b""

    said.piece = never  # type: ignore[method-assign]
    asking = asyncio.create_task(texts_of(streamed(said), []))
    await waiting.wait()
    asking.cancel()
    await asyncio.wait({asking})

    assert said.released == ["release"]
