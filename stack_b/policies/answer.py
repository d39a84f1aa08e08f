"""An answer under policies, whole or as chunks: a choice ends where something denied begins, with `content_filter`.

It stands behind the redaction of answers: what is decided on is what the client would read. Whatever the pieces of a
stream, the same text goes out; at most as much is held back as the longest thing that is looked for.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from ports.messages import Json
from ports.model import PolicyOutcome
from stack_b.backends.catalog import Candidate
from stack_b.chunks import Closing, Piece, Run
from stack_b.fragments import joined
from stack_b.policies.calls import Unreadable, read_arguments
from stack_b.policies.patterns import Search
from stack_b.policies.rules import Rules, Subject
from stack_b.policies.strings import names_of, strings
from stack_b.policies.text import WAYS, Reading, canonical_texts, one_way
from stack_b.redaction.answer import HEAD, LAST_HEAD, Answer, are_counts
from stack_b.redaction.findings import Finding
from stack_b.redaction.media import MESSAGE, NOWHERE, Place

_BLOCKED: Final = "content_filter"
_STRUCTURE: Final = frozenset({"index", "finish_reason", "delta"})
_CALLS: Final = ("tool_calls", "function_call")

Searches: TypeAlias = Sequence[tuple[Search, str]]


class Gate:
    """One text on its way to the client."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches
        self._window = max((search.width for search, _ in searches), default=0)
        """What must be known behind a character before it may go: the rest of a match, and what stands behind it."""
        self._readings: tuple[Reading, ...] = (Reading(),)
        self.denied: str | None = None
        """The reason, once something was found. From there on nothing goes out."""

    def feed(self, more: str) -> str:
        """What may go out now."""
        if self.denied is not None:
            return ""
        if len(self._readings) == 1 and not one_way(more):
            self._readings += tuple(map(self._readings[0].another, WAYS))
        for reading in self._readings:
            reading.feed(more)
        return self._released(self._window)

    def end(self) -> str:
        """The rest of it."""
        if self.denied is not None:
            return ""
        for reading in self._readings:
            reading.end()
        shown = self._released(0)
        return shown if self.denied is not None else shown + self._readings[0].rest()

    def _released(self, held: int) -> str:
        """What begins before the last `held` characters is decided, in each way to read it."""
        decided = [self._decided(reading, held) for reading in self._readings]
        at = min(place for place, _ in decided)
        self.denied = next((reason for place, reason in decided if place == at and reason is not None), None)
        if not at:
            return ""
        released, *_ = [reading.release_given(at) for reading in self._readings]
        return released

    def _decided(self, reading: Reading, held: int) -> tuple[int, str | None]:
        """Up to where in what was given and not released, and why nothing behind it may go."""
        upto = len(reading.text) - held
        if upto <= reading.context:
            return 0 if held else reading.read, None
        end, denied = upto, None
        for search, reason in self._searches:
            found = search.first(reading.text, reading.context)
            if found is not None and found < end:
                end, denied = found, reason
        return reading.place(end), denied


class Guarded:
    """The answer to one request. Has what `Answer` has, which it wraps."""

    def __init__(self, answer: Answer, rules: Rules, subject: Subject) -> None:
        self._answer = answer
        self._rules = rules
        self._subject = subject
        self._candidate: Candidate | None = None
        self._searches: Searches = ()
        self._choices: dict[int, _Choice] = {}
        self._leads: dict[int, dict[str, Json]] = {}
        self._last: dict[int, dict[str, Json]] = {}
        self._beside: dict[str, None] = {}
        """Why something beside the choices was left out, in order."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._answer.findings

    @property
    def ended(self) -> frozenset[int]:
        """The choices of which nothing more is shown."""
        denied = frozenset(index for index, one in self._choices.items() if one.denied is not None)
        return denied | self._answer.ended

    def served_by(self, candidate: Candidate) -> None:
        """Who answers. Told before anything of the answer is shown."""
        self._candidate = candidate
        self._searches = self._rules.searches(self._subject, candidate)

    async def counts(self, usage: dict[str, Json] | None) -> dict[str, Json] | None:
        """Of what is denied, nothing."""
        return self._counts(await self._answer.counts(usage))

    async def beside(self, answer: dict[str, Json]) -> dict[str, Json]:
        return self._headed(await self._answer.beside(answer), HEAD | {"data"})

    def at_hand(self, _: dict[str, Json]) -> bool:
        """The policies have their say on every answer."""
        return False

    async def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        shown = self._headed(await self._answer.whole(answer), HEAD)
        if not are_counts(shown.get("usage")):
            shown = {**shown, "usage": self._counts(shown["usage"])}
        return {**shown, "choices": [self._whole(choice) for choice in shown["choices"]]}

    async def pieces(self, pieces: list[Piece]) -> list[Piece]:
        shown = await self._answer.pieces(pieces)
        if not self._searches and not self._leads and all(isinstance(piece, Run) for piece in shown):
            # Only calls are decided on, and there are none in it.
            return shown
        return list(self._fed(shown))

    async def rest(self) -> list[dict[str, Json]]:
        released = self._fed(await self._answer.rest())
        for index, one in sorted(self._choices.items()):
            last = self._leads.pop(index, {}) | one.end()
            if last:
                released.append(self._piece(self._last[index], last))
        return released

    async def closing(self, chunks: list[dict[str, Json]]) -> Closing:
        heads = [self._headed(chunk, LAST_HEAD) for chunk in await self._answer.closing(chunks)]
        return Closing([{**head, "choices": [self._ended(choice) for choice in head["choices"]]} for head in heads])

    def to_keep(self, shown: Json) -> Json:
        return self._answer.to_keep(shown)

    def outcome(self, asked: PolicyOutcome | None) -> PolicyOutcome | None:
        before = self._answer.outcome(asked)
        denied = [one.denied for _, one in sorted(self._choices.items()) if one.denied is not None]
        reasons = dict.fromkeys(denied) | self._beside
        if before is None or not reasons:
            return before
        return PolicyOutcome(decision="blocked", reasons=(*before.reasons, *reasons))

    def _counts(self, usage: dict[str, Json] | None) -> dict[str, Json] | None:
        if not self._searches or are_counts(usage):
            return usage
        shown: dict[str, Json] = self._headed({"counts": usage}, frozenset()).get("counts", {})
        return shown

    def _choice(self, index: int) -> "_Choice":
        return self._choices.setdefault(index, _Choice(self))

    def _headed(self, chunk: dict[str, Json], known: frozenset[str]) -> dict[str, Json]:
        """`chunk` without what is denied of what is said beside its choices."""
        if not self._searches or chunk.keys() <= known:
            return chunk
        shown: dict[str, Json] = {}
        for name, member in chunk.items():
            reason = None if name in known else self.against({name: member})
            if reason is None:
                shown[name] = member
            else:
                self._beside[reason] = None
        return shown

    def _fed(self, pieces: Sequence[Piece]) -> list[dict[str, Json]]:
        released: list[dict[str, Json]] = []
        for piece in pieces:
            chunk = self._headed(piece.with_text("".join(piece.texts)) if isinstance(piece, Run) else piece, HEAD)
            [choice] = chunk["choices"]
            index = choice.get("index") or 0
            self._last[index] = chunk
            shown = self._choice(index).feed(choice["delta"])
            if not shown:
                continue
            lead = self._leads.pop(index, {}) | shown
            if lead.keys() <= {"role"}:
                # Said together with the first words: an answer that has only begun may still become an error.
                self._leads[index] = lead
            else:
                released.append(self._piece(chunk, lead))
        return released

    def _piece(self, chunk: dict[str, Json], delta: dict[str, Json]) -> dict[str, Json]:
        [choice] = chunk["choices"]
        one = self._choice(choice.get("index") or 0)
        rest = {name: self._beside_message(name, member, one) for name, member in choice.items() if name != "delta"}
        return {**chunk, "choices": [{**rest, "delta": delta}]}

    def _whole(self, choice: dict[str, Json]) -> dict[str, Json]:
        one = self._choice(choice.get("index") or 0)
        message: dict[str, Json] = {"role": "assistant", "content": None} | dict.fromkeys(choice["message"])
        for part in (one.feed(choice["message"]), one.end()):
            for name, member in part.items():
                known = message.get(name)
                message[name] = known + member if isinstance(known, str) and name != "role" else member
        return {**self._ended(choice), "message": message}

    def _ended(self, choice: dict[str, Json]) -> dict[str, Json]:
        """Everything of a choice but what it says."""
        one = self._choice(choice.get("index") or 0)
        shown = {name: self._beside_message(name, member, one) for name, member in choice.items() if name != "message"}
        return {**shown, "finish_reason": _BLOCKED} if one.denied is not None else shown

    def _beside_message(self, name: str, member: Json, one: "_Choice") -> Json:
        """What stands beside a message. Token by token, probabilities would spell what was held back."""
        if name in _STRUCTURE or not self._searches:
            return member
        return member if name != "logprobs" and one.shows(member) else None

    # What a choice asks.

    @property
    def searches(self) -> Searches:
        return self._searches

    def against(self, value: Json, place: Place = NOWHERE) -> str | None:
        """Why a value that is shown at once may not be."""
        if not self._searches:
            return None
        texts = [reading for text in strings(value, place) for reading in canonical_texts(text)]
        for search, reason in self._searches:
            if any(map(search.found, texts)):
                return reason
        return None

    def against_call(self, call: Json) -> str | None:
        assert self._candidate is not None, "an answer is somebody's"
        arguments = _arguments_of(call)
        for name in names_of(call):
            denial = self._rules.call(self._subject, self._candidate, name, arguments)
            if denial is not None:
                return denial.reason
        return self.against([call, _read(arguments)])


class _Choice:
    def __init__(self, answer: Guarded) -> None:
        self._answer = answer
        self._texts: dict[str, Gate] = {}
        self._held: dict[str, Json] = {}
        self.denied: str | None = None

    def feed(self, delta: dict[str, Json]) -> dict[str, Json]:
        """What may be shown of it now."""
        shown: dict[str, Json] = {}
        for name, member in delta.items():
            if self.denied is not None:
                break
            if name == "role" or member is None:
                shown[name] = member
            elif name == "tool_calls":
                shown |= self._called(member, shown)
            elif isinstance(member, str):
                self._show(shown, name, self._gate(name).feed(member), given=member)
            else:
                self._held[name] = joined(self._held.get(name), member)
        return shown

    def end(self) -> dict[str, Json]:
        """The rest of it. Of a choice that was denied, what stood before that."""
        shown = self._texts_ended() if self.denied is None else {}
        for name, member in self._held.items():
            if self.denied is None:
                called = name in _CALLS
                self.denied = (
                    self._answer.against_call(member) if called else self._answer.against(member, (*MESSAGE, name))
                )
                shown |= {} if self.denied is not None else {name: member}
        self._held = {}
        return shown

    def shows(self, member: Json) -> bool:
        """Whether a member beside the message may be shown; the choice ends if not."""
        self.denied = self.denied or self._answer.against(member)
        return self.denied is None

    def _called(self, calls: list[Json], shown: dict[str, Json]) -> dict[str, Json]:
        """All of the calls, or none: a client that makes some of them would act on half of what was meant."""
        # What was said before comes before.
        before = {name: (shown.get(name) or "") + text for name, text in self._texts_ended().items()}
        for call in calls:
            self.denied = self.denied or self._answer.against_call(call)
        return before if self.denied is not None else {**before, "tool_calls": calls}

    def _gate(self, name: str) -> Gate:
        return self._texts.setdefault(name, Gate(self._answer.searches))

    def _show(self, shown: dict[str, Json], name: str, text: str, *, given: str) -> None:
        self.denied = self._texts[name].denied
        if text or not given:
            shown[name] = text

    def _texts_ended(self) -> dict[str, Json]:
        ended: dict[str, Json] = {}
        for name, gate in self._texts.items():
            if self.denied is None:
                if text := gate.end():
                    ended[name] = text
                self.denied = gate.denied
        return ended


def _arguments_of(call: Json) -> Json:
    """Of a function, as JSON; of a tool that takes a text, that text."""
    places = [call.get("custom"), call.get("function"), call] if isinstance(call, dict) else []
    found = [place.get("input") or place.get("arguments") for place in places if isinstance(place, dict)]
    return next((one for one in found if one), None)


def _read(arguments: Json) -> Json:
    try:
        return read_arguments(arguments)
    except Unreadable:
        return None
