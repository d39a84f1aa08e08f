"""Texts that hold values: JSON, and the texts in base64 of `data:` URLs. What is replaced inside leaves them what they are.

Pure, but for the question what is to be found.
"""

import base64
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from ports.messages import Json
from ports.pii import Span
from ports.pii_escapes import textual
from stack_b.redaction.spans import replaced

MAX_DEPTH: Final = 4
"""Of JSON in a text in JSON, and of base64 in base64. What lies deeper is replaced as in any text."""
MAX_NESTED: Final = 64
"""Levels of JSON, as many as a request may have."""
_SHORTEST_BASE64: Final = 20
_BRACKET: Final = re.compile(r'[\[{\]}]|"(?:[^"\\]|\\.)*+"', re.DOTALL)
_HALF: Final = re.compile("[\ud800-\udfff]")

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(?<![\w.])-?[0-9][0-9.eE+-]*+', re.DOTALL)
_BASE64: Final = re.compile(r"((?i:data:([^,\s]{0,200});base64,))?([A-Za-z0-9+/_-]+={0,2})")

Find: TypeAlias = Callable[[str], Awaitable[Sequence[Span]]]


class StandIn:
    """What stands for findings: said by kind, by what was found, and by whether it was a number."""

    def __init__(self, of: Callable[[str, str, bool], str]) -> None:
        self._of = of
        self.kinds: list[str] = []
        """Of what was replaced."""

    def text(self, kind: str, found: str) -> str:
        self.kinds.append(kind)
        return self._of(kind, found, False)

    def number(self, kind: str, found: str) -> str:
        self.kinds.append(kind)
        return self._of(kind, found, True)


class Payload(NamedTuple):
    """Base64 that holds a text."""

    head: str
    text: str

    def holding(self, text: str, head: str) -> str:
        """The same with another text in it, and another head before it."""
        return head + base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


async def masked(text: str, find: Find, stand_in: StandIn, depth: int = 0) -> str:
    """`text` without what is found in it; the same text where nothing is."""
    if depth < MAX_DEPTH and (payload := payload_of(text)) is not None:
        inside = await masked(payload.text, find, stand_in, depth + 1)
        if inside != payload.text:
            return payload.holding(inside, replaced(payload.head, await find(payload.head), stand_in.text))
    spans = await find(text)
    if not spans:
        return text
    if depth < MAX_DEPTH and is_json(text):
        text = await _masked_json(text, spans, find, stand_in, depth)
        # What is left lies across values: then no form can be kept.
        spans = await find(text)
    return replaced(text, spans, stand_in.text) if spans else text


def payload_of(text: str) -> Payload | None:
    """The text that `text` is the base64 of, with or without the `data:` URL around it."""
    if len(text) < _SHORTEST_BASE64 or " " in text or (match := _BASE64.fullmatch(text)) is None:
        return None
    found = textual(match[3], match[2] if match[1] else "?")
    return None if not found else Payload(match[1] or "", found)


def is_json(text: str) -> bool:
    """Whether it is an object or a list."""
    return text.lstrip()[:1] in ("{", "[") and read(text) is not None


def read(text: str) -> Json:
    """The value that `text` is as JSON; None where it is none, is nested too deep or can't be written again."""
    if _too_deep(text):
        return None
    try:
        return json.loads(text, strict=False, parse_constant=_refused, parse_float=_finite)
    except ValueError:
        return None


def written(value: Json) -> str:
    """As JSON; halves of a character, which no encoding has, as escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(value, separators=(",", ":")) if _HALF.search(text) else text


def _too_deep(text: str) -> bool:
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1 if bracket[0] in "]}" else 0
        if depth > MAX_NESTED:
            return True
    return False


def _refused(constant: str) -> Json:
    raise ValueError(constant)


def _finite(number: str) -> float:
    found = float(number)
    return found if math.isfinite(found) else _refused(number)


async def _masked_json(text: str, spans: Sequence[Span], find: Find, stand_in: StandIn, depth: int) -> str:
    """Token by token, each that has something to find as the value that it is. All others stay as they are written."""
    parts: list[str] = []
    at = 0
    for token, kind in _touched(text, spans):
        shown = token[0]
        if shown[0] == '"':
            said = json.loads(shown, strict=False)
            inside = await masked(said, find, stand_in, depth + 1)
            shown = shown if inside == said else written(inside)
        else:
            shown = written(stand_in.number(kind, shown))
        parts += (text[at : token.start()], shown)
        at = token.end()
    return "".join((*parts, text[at:]))


def _touched(text: str, spans: Sequence[Span]) -> Iterator[tuple[re.Match[str], str]]:
    """The tokens in which something was found, with its kind."""
    waiting = iter(spans)
    span = next(waiting, None)
    for token in _TOKEN.finditer(text):
        while span is not None and span.end <= token.start():
            span = next(waiting, None)
        if span is None:
            return
        if span.start < token.end():
            yield token, span.kind
