"""A reply that is there already, for somebody who asks for it now: decided as a call would be, and nothing of it is paid.

What an answer holds of personal data was decided when it was made: by then it was shown to the same principal.
"""

from typing import Final

import msgspec

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.messages import Json
from ports.model import PolicyOutcome
from ports.pii import PiiDetector
from stack_b.backends.catalog import Candidate
from stack_b.blocks import Refusing
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.policies.desk import Ruled
from stack_b.prepare import Preparation
from stack_b.receipt import Trail
from stack_b.records.recorder import Recorder
from stack_b.redaction.answer import Answer
from stack_b.redaction.placeholders import Placeholders
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.stream import Lens
from stack_b.tell import Tell


class Anew:
    """Holds no state of a request."""

    def __init__(self, prepare: Preparation, recorder: Recorder, pii: PiiDetector, clock: Clock, tell: Tell) -> None:
        self._prepare = prepare
        self._recorder = recorder
        self._pii = pii
        self._clock = clock
        self._tell = tell
        self._as_it_is: Final = PiiRules(modes=dict.fromkeys(pii.capabilities.classes, "allow"))

    async def permitted(self, auth: AuthContext, call: ChatCall | EmbedCall) -> Ruled:
        """Raises like the call it is. A denial is in the audit before it is told."""
        trail = Trail(auth, self._clock)
        try:
            with Refusing(trail, self._tell, None):
                return await self._prepare.again(auth, call, trail)
        except AgentOSError as error:
            await self._recorder.over(trail, call, error)
            raise

    async def shown(self, auth: AuthContext, call: ChatCall | EmbedCall, reply: dict[str, Json]) -> dict[str, Json]:
        """`reply` as far as it may be answered today. Raises like `permitted`."""
        ruled = await self.permitted(auth, call)
        answer = ruled.guarded(Answer(Lens(self._pii, auth, self._as_it_is, Placeholders(self._as_it_is))))
        if isinstance(call, EmbedCall) or isinstance(answer, Answer):
            return reply
        answer.served_by(_who(reply, ruled.candidates))
        shown = await answer.whole(reply)
        outcome = msgspec.convert(reply["policy_outcome"], PolicyOutcome)
        decided = answer.outcome(outcome)
        return reply if decided == outcome else {**shown, "policy_outcome": msgspec.to_builtins(decided)}


def _who(reply: dict[str, Json], candidates: tuple[Candidate, ...]) -> Candidate:
    """Who made it; who would be asked first where that one is not asked any more."""
    route = reply["route"]
    made = (one for one in candidates if (one.backend.name, one.card.id) == (route["backend"], route["model"]))
    return next(made, candidates[0])
