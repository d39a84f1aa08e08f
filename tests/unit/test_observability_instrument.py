import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from conformance.people import ACME
from observability.instrument import PortCall, instrument
from ports.context import AuthContext
from ports.errors import Internal, NotFound


class Endless:
    """An async iterator that is no generator."""

    def __init__(self) -> None:
        self.closed = False

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> int:
        return 7

    async def aclose(self) -> None:
        self.closed = True


class Port:
    """One method of every shape a port has."""

    def __init__(self) -> None:
        self.endless = Endless()
        self.closed = False

    @property
    def capabilities(self) -> str:
        return "many"

    def mint(self, auth: AuthContext, text: str) -> str:
        return f"{auth.tenant}:{text}"

    async def get(self, auth: AuthContext, key: str, *, error: BaseException | None = None) -> str:
        if error is not None:
            raise error
        return f"{auth.tenant}:{key}"

    async def follow(self, _auth: AuthContext, *, error: Exception | None = None) -> AsyncIterator[int]:
        try:
            yield 1
            if error is not None:
                raise error
            yield 2
        finally:
            self.closed = True

    def forever(self, _auth: AuthContext) -> AsyncIterator[int]:
        return self.endless

    async def hang(self, _auth: AuthContext) -> None:
        await asyncio.Event().wait()


class Ticking:
    """A second passes between two looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def calls() -> list[PortCall]:
    return []


@pytest.fixture
def bare() -> Port:
    return Port()


@pytest.fixture
def port(bare: Port, calls: list[PortCall]) -> Port:
    return instrument("sample", bare, calls.append, monotonic=Ticking())


def outcomes(calls: list[PortCall]) -> list[tuple[str, str]]:
    return [(call.method, call.code) for call in calls]


def test_properties_and_plain_methods_pass_through(port: Port, calls: list[PortCall]) -> None:
    assert port.capabilities == "many"
    assert port.mint(ACME, "x") == "tnt_acme:x"

    assert outcomes(calls) == [("mint", "ok")]


@pytest.mark.anyio
class TestCoroutines:
    async def test_a_call_is_measured_with_its_caller(self, port: Port, calls: list[PortCall]) -> None:
        assert await port.get(ACME, "k") == "tnt_acme:k"

        [call] = calls
        assert call == PortCall(port="sample", method="get", code="ok", seconds=1.0, auth=ACME)

    async def test_an_error_of_the_tree_passes_as_it_is(self, port: Port, calls: list[PortCall]) -> None:
        error = NotFound("nothing there")

        with pytest.raises(NotFound) as raised:
            await port.get(ACME, "k", error=error)

        assert raised.value is error
        assert outcomes(calls) == [("get", "not_found")]

    async def test_any_other_error_becomes_internal_with_its_cause(self, port: Port, calls: list[PortCall]) -> None:
        error = KeyError("canary-7")

        with pytest.raises(Internal) as raised:
            await port.get(ACME, "k", error=error)

        assert raised.value.__cause__ is error
        assert "canary-7" not in raised.value.message
        assert outcomes(calls) == [("get", "internal")]

    async def test_cancellation_passes_and_is_no_error(self, port: Port, calls: list[PortCall]) -> None:
        with anyio.move_on_after(0.01) as scope:
            await port.hang(ACME)

        assert scope.cancelled_caught
        assert outcomes(calls) == [("hang", "cancelled")]

    async def test_what_ends_the_process_passes(self, port: Port, calls: list[PortCall]) -> None:
        with pytest.raises(SystemExit):
            await port.get(ACME, "k", error=SystemExit(3))

        assert outcomes(calls) == [("get", "internal")]

    async def test_a_listener_that_fails_does_not_fail_the_call(self, bare: Port) -> None:
        def broken(_call: PortCall) -> None:
            raise RuntimeError("no disk")

        assert await instrument("sample", bare, broken).get(ACME, "k") == "tnt_acme:k"


@pytest.mark.anyio
class TestIterators:
    async def test_an_iterator_is_measured_once_to_its_end(self, port: Port, calls: list[PortCall]) -> None:
        assert [item async for item in port.follow(ACME)] == [1, 2]

        assert outcomes(calls) == [("follow", "ok")]
        assert calls[0].auth == ACME

    async def test_an_error_in_the_middle_is_translated(self, port: Port, calls: list[PortCall]) -> None:
        follower = port.follow(ACME, error=ValueError("x"))
        assert await anext(follower) == 1

        with pytest.raises(Internal):
            await anext(follower)

        assert outcomes(calls) == [("follow", "internal")]

    async def test_closing_early_closes_the_ports_own_and_is_no_error(
        self, port: Port, bare: Port, calls: list[PortCall]
    ) -> None:
        follower = port.follow(ACME)
        assert await anext(follower) == 1

        await follower.aclose()  # type: ignore[attr-defined]  # the wrapper is a generator, as the event port promises

        assert bare.closed
        assert outcomes(calls) == [("follow", "ok")]

    async def test_an_iterator_that_is_no_generator_works_too(
        self, port: Port, bare: Port, calls: list[PortCall]
    ) -> None:
        follower = port.forever(ACME)
        assert await anext(follower) == 7

        await follower.aclose()  # type: ignore[attr-defined]  # see above

        assert bare.endless.closed
        assert outcomes(calls) == [("forever", "ok")]
