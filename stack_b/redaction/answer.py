"""What the client may read of a model's answer, whole or as chunks: the texts of every choice, what it calls, and what a
backend says beside them.

A finding that blocks ends its choice there, with the finish reason `content_filter`. Token probabilities are left out where
texts are looked at: token by token they spell what was taken out.
"""

from collections import Counter
from typing import Final

from msgspec import Struct

from ports.messages import Json
from ports.model import PolicyOutcome
from stack_b.backends.catalog import Candidate
from stack_b.chunks import Closing, Piece, Run, index_of
from stack_b.fragments import joined
from stack_b.redaction.findings import Finding, findings_of
from stack_b.redaction.media import MESSAGE, NOWHERE, Place, is_media
from stack_b.redaction.nested import MAX_DEPTH, is_json, payload_of, read, written
from stack_b.redaction.parts import is_cut, texts_of
from stack_b.redaction.parts import joined as joined_parts
from stack_b.redaction.spans import LONG_NUMBER, free_name, number_of, rewritten, texts
from stack_b.redaction.stream import Lens, Shown, TextStream
from stack_b.replay import RECEIPT

_STRUCTURE: Final = frozenset({"index", "finish_reason", "type", "id", "delta", "function"})
"""Members of a choice and of a call that clients go by, and those that are looked at by themselves."""
COUNTS: Final = frozenset(
    {
        "accepted_prediction_tokens", "audio_tokens", "cache_creation_input_tokens", "cache_creation_tokens",
        "cache_read_input_tokens", "cache_write_tokens", "cached_tokens", "completion_tokens", "completion_tokens_details",
        "image_tokens", "input_tokens", "output_tokens", "prompt_tokens", "prompt_tokens_details", "reasoning_tokens",
        "rejected_prediction_tokens", "text_tokens", "total_tokens",
    }
)  # fmt: skip
"""Members of what a backend says of its tokens."""
HEAD: Final = frozenset({"choices", "created", "id", "model", "object", "service_tier", "system_fingerprint", "usage"})
"""Members of an answer and of a chunk that say nothing. Whatever else a backend puts beside its choices is looked at."""
LAST_HEAD: Final = HEAD.union(RECEIPT)
"""The same where the receipt is."""
_PLAIN_CHOICE: Final = frozenset({"index", "finish_reason", "logprobs", "message"})
_PLAIN_MESSAGE: Final = frozenset({"role", "content"})
_BEGINNING: Final = frozenset({"role", "content"})
_BLOCKED: Final = "content_filter"
_TEXT: Final = "content"


class Answer(Struct, eq=False):
    """The answer to one request."""

    _lens: Lens
    _choices: dict[int, "_Choice"] = {}
    _leads: dict[int, dict[str, Json]] = {}
    _last: dict[int, dict[str, Json]] = {}
    _kinds: list[str] = []
    _beside: tuple[dict[str, Json], dict[str, Json]] | None = None
    """What was said beside the choices last, and what may be shown of it."""
    _run: tuple[dict[str, Json], dict[str, Json]] | None = None
    _blocked: bool = False
    """Something beside the choices was."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was taken out so far."""
        return findings_of(Counter(self._kinds)) if self._kinds else ()

    @property
    def ended(self) -> frozenset[int]:
        """The choices of which nothing more is shown."""
        return frozenset(index for index, one in self._choices.items() if one.blocked)

    def served_by(self, candidate: Candidate) -> None:
        """Who answers: no difference to what is found."""

    async def counts(self, usage: dict[str, Json] | None) -> dict[str, Json] | None:
        """What a backend says of its tokens, and what else it says there."""
        if self._lens.idle or are_counts(usage):
            return usage
        shown: dict[str, Json] = (await self._headed({"counts": usage}, frozenset())).get("counts", {})
        return shown

    async def beside(self, answer: dict[str, Json]) -> dict[str, Json]:
        """An answer that has no choices."""
        return answer if self._lens.idle or answer.keys() <= HEAD else await self._headed(answer, HEAD | {"data"})

    def at_hand(self, answer: dict[str, Json]) -> bool:
        """Whether an answer may be shown as it is, as far as that is seen without asking the detector."""
        if self._lens.idle:
            return True
        return answer.keys() <= HEAD and are_counts(answer.get("usage")) and all(map(self._is_prose, answer["choices"]))

    async def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        if self._lens.idle:
            return answer
        head = answer if answer.keys() <= HEAD else await self._headed(answer, HEAD)
        if not are_counts(answer.get("usage")):
            head = {**head, "usage": await self.counts(answer["usage"])}
        if all(map(self._is_prose, answer["choices"])):
            # As most are: seen without asking the detector, and left as it is.
            return head
        return {**head, "choices": [await self._whole(choice) for choice in answer["choices"]]}

    async def pieces(self, pieces: list[Piece]) -> list[Piece]:
        """What may go out now, of chunks with one choice each."""
        if self._lens.idle:
            return pieces
        released: list[Piece] = []
        for piece in pieces:
            if not isinstance(piece, Run):
                released += await self._chunk(piece)
                continue
            index, texts = index_of(piece.chunk), piece.texts
            while texts and index in self._leads:
                # With the first words that are shown goes what was said before them.
                released += await self._chunk(piece.with_text(texts[0]))
                texts = texts[1:]
            if texts:
                form = self._last[index] = await self._form(piece.chunk)
                if shown := await self._choice(index).more(texts):
                    released.append(Run(form, shown, 0))
        return released

    async def _chunk(self, chunk: dict[str, Json]) -> list[dict[str, Json]]:
        if not chunk.keys() <= HEAD:
            chunk = await self._headed(chunk, HEAD)
        [choice] = chunk["choices"]
        index = choice.get("index") or 0
        one = self._choice(index)
        self._last[index] = chunk
        if one.untouched and _says_nothing(choice):
            # How nearly all answers begin.
            return [chunk]
        released: list[dict[str, Json]] = []
        for delta in await one.feed(choice["delta"]):
            lead = self._leads.pop(index, {}) | delta
            if lead.keys() <= {"role"}:
                # Said together with the first words: an answer that has only begun may still become an error.
                self._leads[index] = lead
            else:
                released.append(_piece(chunk, lead))
        return released

    async def rest(self) -> list[dict[str, Json]]:
        """What was held back until the model had ended."""
        released: list[dict[str, Json]] = []
        for index, one in sorted(self._choices.items()):
            last = self._leads.pop(index, {}) | await one.end()
            if last:
                released.append(_piece(self._last[index], last))
        return released

    async def closing(self, chunks: list[dict[str, Json]]) -> Closing:
        """The last chunks; they say which choices were blocked."""
        if self._lens.idle:
            return Closing(chunks)
        heads = [await self._headed(chunk, LAST_HEAD) for chunk in chunks]
        return Closing(
            [{**head, "choices": [await self._ended(choice) for choice in head["choices"]]} for head in heads]
        )

    def to_keep(self, shown: Json) -> Json:
        """What was shown, as it may be written down: with the placeholders that were undone in it standing again."""
        return rewritten(shown, {text: self._lens.standing(text) for text in texts(shown)})

    def outcome(self, asked: PolicyOutcome | None) -> PolicyOutcome | None:
        """What policy decided on the request and on its answer."""
        if asked is None or not self._kinds:
            return asked
        blocked = self._blocked or any(one.blocked for one in self._choices.values())
        reasons = (*asked.reasons, *(f"pii_output:{kind}" for kind in sorted(set(self._kinds))))
        return PolicyOutcome(decision="blocked" if blocked else "redacted", reasons=reasons)

    async def _form(self, chunk: dict[str, Json]) -> dict[str, Json]:
        """Of a run: the same object for the same one."""
        if chunk.keys() <= HEAD:
            return chunk
        if self._run is None or self._run[0] is not chunk:
            self._run = (chunk, await self._headed(chunk, HEAD))
        return self._run[1]

    async def _headed(self, chunk: dict[str, Json], known: frozenset[str]) -> dict[str, Json]:
        """`chunk` with what is said beside its choices as it may be shown. What blocks is left out."""
        if chunk.keys() <= known:
            return chunk
        beside = {name: member for name, member in chunk.items() if name not in known}
        if self._beside is None or self._beside[0] != beside:
            # Mostly the same in every chunk.
            shown: dict[str, Json] = {}
            last: dict[str, int] = {}
            for name, member in beside.items():
                one = _Choice(self._lens, self._kinds)
                value = await one.value({name: member})
                self._blocked = self._blocked or one.blocked
                if not one.blocked:
                    shown |= {free_name(called, shown, last): said for called, said in value.items()}
            self._beside = (beside, shown)
        return {name: member for name, member in chunk.items() if name in known} | self._beside[1]

    def _choice(self, index: int) -> "_Choice":
        known = self._choices.get(index)
        if known is None:
            known = self._choices[index] = _Choice(self._lens, self._kinds)
        return known

    async def _whole(self, choice: dict[str, Json]) -> dict[str, Json]:
        if await self._clear(choice):
            return choice
        one = self._choice(choice.get("index") or 0)
        message: dict[str, Json] = {"role": "assistant", "content": None} | dict.fromkeys(choice["message"])
        for part in (*await one.feed(choice["message"]), await one.end()):
            for name, member in part.items():
                known = message.get(name)
                message[name] = known + member if isinstance(known, str) and name != "role" else member
        return {**await self._ended(choice), "message": message}

    def _is_prose(self, choice: dict[str, Json]) -> bool:
        """Whether it says a plain text in which nothing can be."""
        message = choice["message"]
        if not (choice.keys() <= _PLAIN_CHOICE and message.keys() == _PLAIN_MESSAGE and choice.get("logprobs") is None):
            return False
        text = message["content"]
        return isinstance(text, str) and self._lens.is_prose(text)

    async def _clear(self, choice: dict[str, Json]) -> bool:
        """Whether it is plain text with nothing in it, as most are: then it stays as it is."""
        message = choice["message"]
        if not (choice.keys() <= _PLAIN_CHOICE and message.keys() >= _PLAIN_MESSAGE and choice.get("logprobs") is None):
            return False
        for name, text in message.items():
            if text is None or name == "role":
                continue
            if not isinstance(text, str) or not await self._lens.clear(text):
                return False
        return True

    async def _ended(self, choice: dict[str, Json]) -> dict[str, Json]:
        """Everything of a choice but what it says."""
        one = self._choice(choice.get("index") or 0)
        if choice.keys() <= _STRUCTURE and not one.blocked:
            return choice
        shown = {
            name: None if name == "logprobs" else member if name in _STRUCTURE else await one.value(member)
            for name, member in choice.items()
            if name != "message"
        }
        return {**shown, "finish_reason": _BLOCKED} if one.blocked else shown


class _Choice:
    def __init__(self, lens: Lens, findings: list[str]) -> None:
        self._lens = lens
        self._findings = findings
        self._texts: dict[str, TextStream] = {}
        self._held: dict[str, Json] = {}
        self.blocked = False

    @property
    def untouched(self) -> bool:
        """Whether it has said nothing yet."""
        return not self._texts and not self._held and not self.blocked

    async def feed(self, delta: dict[str, Json]) -> list[dict[str, Json]]:
        """What may be shown of it now, in order. Of a choice that was blocked, nothing."""
        shown: dict[str, Json] = {}
        calls: dict[str, Json] = {}
        for name, member in delta.items():
            if self.blocked:
                break
            if name == "role" or member is None:
                shown[name] = member
            elif name == "tool_calls":
                # What was said before comes before.
                for earlier, text in (await self._texts_ended()).items():
                    shown[earlier] = (shown.get(earlier) or "") + text
                called = [await self._call(call) for call in member]
                calls = {} if self.blocked else {name: called}
            elif isinstance(member, str):
                text = self._noted(await self._texts.setdefault(name, TextStream(self._lens)).feed(member))
                if text or not member:
                    shown[name] = text
            else:
                # Nobody reads these as they come, and a text in them may go on in the next chunk.
                self._held[name] = joined(self._held.get(name), member)
        return [part for part in (shown, calls) if part]

    async def more(self, texts: list[str]) -> list[str]:
        """`feed` of nothing but texts, one after the other."""
        if self.blocked:
            return []
        text = self._texts.get(_TEXT)
        if text is None:
            text = self._texts[_TEXT] = TextStream(self._lens)
        before = text.held
        shown = self._noted(await text.feed("".join(texts)))
        whole = [before + texts[0], *texts[1:]] if before else texts
        if shown + text.held == "".join(whole):
            return _up_to(len(shown), whole) if text.held else whole
        return [shown] if shown else []

    async def end(self) -> dict[str, Json]:
        shown: dict[str, Json] = dict(await self._texts_ended())
        for name, member in self._held.items():
            if not self.blocked:
                value = await (
                    self._function(member) if name == "function_call" else self.value(member, (*MESSAGE, name))
                )
                shown |= {} if self.blocked else {name: value}
        return shown

    async def value(self, value: Json, place: Place = NOWHERE, *, depth: int = 0) -> Json:
        """A JSON value with each of its strings as it may be shown. `depth`: in how many texts."""
        if isinstance(value, str):
            return value if is_media(value, place) else await self._text(value, depth)
        if isinstance(value, list):
            said = texts_of(value)
            if said and is_cut(await self._lens.found("".join(said)), said):
                value = joined_parts(value, {id(value)})
            return [await self.value(item, place, depth=depth) for item in value]
        if isinstance(value, dict):
            shown: dict[str, Json] = {}
            last: dict[str, int] = {}
            for name, member in value.items():
                called = free_name(await self.value(name), shown, last)
                shown[called] = await self._number_or(member, (*place, name), depth)
            return shown
        if (number := number_of(value)) is not None:
            text = self._noted(await self._lens.shown(number, ends=True))
            return value if text == number else text
        return value

    async def _number_or(self, member: Json, place: Place, depth: int) -> Json:
        """What a tool will read: a number where the client had told one."""
        number = self._lens.number(member) if depth and isinstance(member, str) else None
        return await self.value(member, place, depth=depth) if number is None else number

    async def _text(self, text: str, depth: int) -> str:
        """A text that is whole, which may be a form for others."""
        if depth < MAX_DEPTH:
            if is_json(text):
                return await self._arguments(text, depth + 1)
            if (payload := payload_of(text)) is not None:
                inside = await self._text(payload.text, depth + 1)
                if inside != payload.text:
                    return payload.holding(inside, self._noted(await self._lens.shown(payload.head, ends=True)))
        return self._noted(await self._lens.shown(text, ends=True))

    async def _call(self, call: dict[str, Json]) -> dict[str, Json]:
        function = call.get("function")
        if not isinstance(function, dict):
            shown: dict[str, Json] = await self.value(call)
            return shown
        rest = {name: member if name in _STRUCTURE else await self.value(member) for name, member in call.items()}
        return {**rest, "function": await self._function(function)}

    async def _function(self, function: dict[str, Json]) -> dict[str, Json]:
        """Its arguments are looked at as the values that the tool will read."""
        shown: dict[str, Json] = {}
        for name, member in function.items():
            is_text = name == "arguments" and isinstance(member, str)
            shown[name] = await (self._arguments(member) if is_text else self.value(member))
        return shown

    async def _arguments(self, text: str, depth: int = 1) -> str:
        if (given := read(text)) is None:
            # Cut off, most likely: then it is a text like any other.
            return self._noted(await self._lens.shown(text, ends=True))
        shown = await self.value(given, depth=depth)
        if shown == given and not await self._lens.found(text):
            return text
        # What is only found in the whole stands there twice, or lies across values.
        told = written(shown)
        return self._noted(await self._lens.shown(told, ends=True)) if shown == given else told

    async def _texts_ended(self) -> dict[str, str]:
        ended: dict[str, str] = {}
        for name, text in self._texts.items():
            if not self.blocked and (last := self._noted(await text.end())):
                ended[name] = last
        return ended

    def _noted(self, shown: Shown) -> str:
        self._findings += shown.kinds
        self.blocked = self.blocked or shown.blocked
        return shown.text


def are_counts(usage: Json) -> bool:
    """Whether there is nothing but counts of tokens, under names that we know."""
    if isinstance(usage, dict):
        if not usage.keys() <= COUNTS:
            return False
        for count in usage.values():
            if not (type(count) is int and -LONG_NUMBER < count < LONG_NUMBER) and not are_counts(count):
                return False
        return True
    return usage is None or (isinstance(usage, int | float) and number_of(usage) is None)


def _says_nothing(choice: dict[str, Json]) -> bool:
    """Whether it is a role and an empty text, as they stand before the first words."""
    delta = choice["delta"]
    return (
        len(delta) == len(_BEGINNING) and delta.keys() == _BEGINNING and not delta[_TEXT] and not choice.get("logprobs")
    )


def _up_to(length: int, texts: list[str]) -> list[str]:
    """The first `length` characters of `texts`, cut where those are."""
    first: list[str] = []
    for text in texts:
        if length <= 0:
            break
        first.append(text[:length])
        length -= len(text)
    return first


def _piece(chunk: dict[str, Json], delta: dict[str, Json]) -> dict[str, Json]:
    [choice] = chunk["choices"]
    rest = {name: member for name, member in choice.items() if name not in {"delta", "logprobs"}}
    return {**chunk, "choices": [{**rest, "delta": delta} | ({"logprobs": None} if "logprobs" in choice else {})]}
