"""Which call a retry without a key is taken for, and when a client's leaving means nothing any more."""

from typing import Final

import pytest
from msgspec.structs import replace

from conformance.people import ACME
from ports.context import AuthContext, PolicyContext
from ports.messages import Json
from stack_b.canonical import About, ChatCall, EmbedCall
from stack_b.flights import Flight, Flights
from stack_b.once import Client, of_retry

pytestmark = [pytest.mark.anyio]

ASKED: Final = ChatCall(model="m-1", members={"messages": [{"role": "user", "content": "hello"}]}, route="/v1/chat")
EMBEDDED: Final = EmbedCall(model="m-1", inputs=("hello",), members={}, route="/v1/embeddings")
CLIENT: Final = Client(retries=0, waits_s=0.01)
OTHERWISE: Final = [
    pytest.param(ACME, replace(ASKED, about=About(agent="agt_b")), id="agent"),
    pytest.param(ACME, replace(ASKED, about=About(session="ses_b")), id="session"),
    pytest.param(ACME, replace(ASKED, preference="cost"), id="preference"),
    pytest.param(replace(ACME, policy=PolicyContext(classification="secret")), ASKED, id="classification"),
    pytest.param(replace(ACME, policy=PolicyContext(regions=("eu",))), ASKED, id="region"),
]


def flights() -> Flights:
    return Flights(lambda _: False)


@pytest.mark.parametrize(("auth", "call"), OTHERWISE)
def test_what_decides_how_a_call_is_made_tells_two_apart_that_say_the_same(auth: AuthContext, call: ChatCall) -> None:
    """Rules, budgets and routes go by it: nobody is answered with a call that was made otherwise."""
    under_way = flights()
    Flight(under_way, ACME, ASKED, CLIENT, began=0.0).begin()

    assert under_way.same(auth, call) is None
    assert of_retry(auth, call, 1).key != of_retry(ACME, ASKED, 1).key


def test_an_agent_is_not_anothers_for_embeddings_either() -> None:
    theirs = replace(EMBEDDED, about=About(agent="agt_b"))
    under_way = flights()
    Flight(under_way, ACME, EMBEDDED, CLIENT, began=0.0).begin()

    assert under_way.same(ACME, theirs) is None
    assert of_retry(ACME, theirs, 1).key != of_retry(ACME, EMBEDDED, 1).key


def test_the_same_under_the_same_circumstances_is_joined() -> None:
    under_way = flights()
    flight = Flight(under_way, ACME, ASKED, CLIENT, began=0.0)
    flight.begin()

    assert under_way.same(ACME, replace(ASKED)) is flight
    assert of_retry(ACME, replace(ASKED), 2).key == of_retry(ACME, ASKED, 1).key


async def test_a_connection_that_closes_after_the_answer_is_no_client_that_ran_out_of_time() -> None:
    """A server tells of it whenever it closes, minutes later on a kept connection: nothing goes on by then."""
    asked: list[Flight] = []

    def on_left(flight: Flight) -> bool:
        asked.append(flight)
        return True

    async def answered() -> dict[str, Json]:
        return {"choices": []}

    flight = Flight(Flights(on_left), ACME, ASKED, CLIENT, began=0.0)
    await flight.carried(answered())

    flight.client_left()

    assert asked == []
