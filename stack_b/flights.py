"""Calls at work whose clients may try again: known to this process, so that the retry joins them.

Most are never joined, so that one costs no more than its place in a set: nothing of it is hashed, gathered or written down
before its client leaves or a retry of it comes.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable, again
from ports.ids import PrincipalId, TenantId
from ports.messages import Json
from stack_b.backends.protocol import OUTCOME_UNKNOWN
from stack_b.broadcast import Broadcast
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.chunks import Piece
from stack_b.once import Client, circumstances
from stack_b.replay import digest_of, is_streamed

_Where: TypeAlias = tuple[TenantId, str, PrincipalId, str]

MAX_COMPARED: Final = 256
"""Calls under way of one principal on one route that a retry is compared with."""


def _nothing() -> None:
    pass


class Flight:
    """One such call."""

    __slots__ = (
        "_chunks", "_digest", "_error", "_flights", "_reply", "auth", "began", "begun", "call", "client", "gone", "over",
        "stop",
    )  # fmt: skip

    def __init__(
        self,
        flights: "Flights",
        auth: AuthContext,
        call: ChatCall | EmbedCall,
        client: Client,
        *,
        began: float,
    ) -> None:
        self._flights = flights
        self.auth = auth
        self.call = call
        self.client = client
        self.began = began
        self.begun = False
        """Some of it was sent and not kept: nobody can join any more."""
        self.gone = False
        """Its client has left."""
        self.over = False
        self.stop: Callable[[], object] = _nothing
        self._chunks: Broadcast[Sequence[Piece]] | None = None
        self._digest: str | None = None
        self._reply: dict[str, Json] | None = None
        self._error: AgentOSError | None = None

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = digest_of(self.call)
        return self._digest

    def joined(self) -> None:
        """From now on its answer is kept for others. Only before it has `begun`."""
        if self._chunks is None:
            self._chunks = Broadcast()

    def give_up(self) -> None:
        if not self.over:
            self.stop()

    # By whoever makes the call.

    def begin(self) -> None:
        self._flights.add(self)

    async def carried(self, work: Awaitable[dict[str, Json]]) -> dict[str, Json]:
        """What `work` comes to, for its client and for those who join."""
        self.begin()
        try:
            reply = await work
        except BaseException as error:
            self.end(error=error)
            raise
        self.end(reply=reply)
        return reply

    def client_left(self) -> None:
        """Its client is gone: it is given up, unless a retry of it has come or will. After its end that means nothing: a
        connection closes at some time."""
        if self.over:
            return
        self.gone = True
        if not self._flights.on_left(self):
            self.give_up()

    def tell(self, pieces: Sequence[Piece]) -> None:
        if self._chunks is None:
            self.begun = True
        else:
            self._chunks.tell(pieces)

    def sending(self) -> None:
        """The client is told that there will be an answer: from here on it does not try again."""
        self.begun = self.begun or self._chunks is None

    def end(self, *, reply: dict[str, Json] | None = None, error: BaseException | None = None) -> None:
        self._flights.remove(self)
        self.over = True
        self._reply = reply
        if error is not None:
            self._error = error if isinstance(error, AgentOSError) else _given_up()
        if self._chunks is not None:
            self._chunks.end()

    # By whoever joins it.

    async def reply(self) -> dict[str, Json]:
        assert self._chunks is not None, "it was not joined"
        async for _ in self._chunks.listen():
            pass
        if self._error is not None:
            raise again(self._error) from self._error
        assert self._reply is not None, "it is over"
        return self._reply

    async def chunks(self) -> AsyncGenerator[Sequence[Piece], None]:
        assert self._chunks is not None, "it was not joined"
        async for pieces in self._chunks.listen():
            yield pieces
        if self._error is not None:
            raise again(self._error) from self._error


class Flights:
    """Those of this process. `on_left` says whether one goes on whose client is gone."""

    def __init__(self, on_left: Callable[[Flight], bool]) -> None:
        self.on_left = on_left
        self._flights: dict[_Where, dict[Flight, None]] = {}

    def add(self, flight: Flight) -> None:
        self._flights.setdefault(_where(flight.auth, flight.call.route), {})[flight] = None

    def remove(self, flight: Flight) -> None:
        where = _where(flight.auth, flight.call.route)
        others = self._flights[where]
        del others[flight]
        if not others:
            del self._flights[where]

    def same(self, auth: AuthContext, call: ChatCall | EmbedCall) -> Flight | None:
        """One at work that asks the same and may be joined; rather one whose client has left."""
        flights = [
            flight
            for flight in list(self._flights.get(_where(auth, call.route), ()))[:MAX_COMPARED]
            if not flight.begun and flight.call.model == call.model and is_streamed(flight.call) == is_streamed(call)
        ]
        if not flights:
            return None
        digest, under = digest_of(call), circumstances(auth, call)
        same = [one for one in flights if one.digest == digest and circumstances(one.auth, one.call) == under]
        return next((flight for flight in same if flight.gone), same[0] if same else None)


def _where(auth: AuthContext, route: str) -> _Where:
    return (auth.tenant, auth.namespace, auth.principal, route)


def _given_up() -> Unavailable:
    return Unavailable("the call that this request has joined was given up; ask again", details=OUTCOME_UNKNOWN)
