"""What the demo backend understands: sentences → the tool calls they ask for. Pure rules, no model.

Each rule takes its part of the text out, so that what one rule read is not read again by the next: a text to be counted
isn't searched for arithmetic, what is to be remembered isn't answered.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from msgspec import Struct

from ports.messages import Json

MAX_INTENTS: Final = 16
"""The contract's limit of parallel tool calls."""


class Intent(Struct, frozen=True, kw_only=True):
    """One thing the text asks for."""

    tool: str
    arguments: dict[str, Json]
    subject: str
    """In the user's words: what the answer is about."""
    focus: str = ""
    """Of a count: which of the counts was asked for."""


_URL: Final = re.compile(r"https?://[^\s<>\"'`]+")
_UNITS: Final = {
    "word": "words", "character": "characters", "char": "characters", "letter": "characters_without_spaces",
    "sentence": "sentences", "line": "lines", "paragraph": "paragraphs",
}  # fmt: skip
_COUNT: Final = re.compile(
    r"\b(?:how\s+many|count(?:\s+the)?|number\s+of)\s+(?P<unit>words?|characters?|chars?|letters?|sentences?|lines?|paragraphs?)\b"
    r"[^:\"“]{0,60}?(?:\bin\b|\bof\b|\bhas\b|:|(?=[\"“]))[^\S\n]*(?:this|the\s+(?:text|sentence|phrase))?[^\S\n]*:?\s*"
    r"(?:[\"“](?P<quoted>[^\"”]+)[\"”]|(?P<rest>\S[\s\S]*))",
    re.IGNORECASE,
)
_RECALL: Final = re.compile(
    r"\b(?:recall|(?:what|do)\s+(?:do\s+)?you\s+(?:remember|know)(?:\s+about)?|what\s+did\s+I\s+(?:say|tell\s+you)(?:\s+about)?)\b"
    r"[\s:]*(?P<query>[^.?!;\n]*)",
    re.IGNORECASE,
)
_REMEMBER: Final = re.compile(
    r"\b(?:please\s+)?(?:remember|memori[sz]e|note\s+down)\b\s*(?:this|that)?\s*:?\s*"
    r"(?P<text>\S.*?)(?=[.!?;](?:\s|$)|\n|,?\s+(?:and|then)\s+(?:then\s+)?(?:recall|tell|what|how|calculate)\b|$)",
    re.IGNORECASE,
)
_TIME: Final = re.compile(
    r"\b(?:what\s+time\s+is\s+it|what(?:'s|\s+is)\s+the\s+(?:current\s+)?(?:time|date)|current\s+(?:time|date)"
    r"|what\s+day\s+is\s+(?:it|today)|today's\s+date)\b(?:\s+(?:now|today))?(?:\s+in\s+(?P<zone>[A-Z][A-Za-z]+/[A-Za-z_/+-]+|UTC))?",
    re.IGNORECASE,
)
_NUMBER: Final = r"\d+(?:,\d{3})*(?:\.\d+)?"
_PERCENT: Final = re.compile(rf"({_NUMBER})\s*(?:%|percent|per\s+cent)\s+of\s+({_NUMBER})", re.IGNORECASE)
_ROOT: Final = re.compile(rf"(?:square\s+root\s+of|sqrt)\s*\(?\s*({_NUMBER})\s*\)?", re.IGNORECASE)
_OPERATORS: Final = {
    "plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/", "over": "/",
    "to the power of": "**", "x": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "^": "**",
}  # fmt: skip
_OPERATOR: Final = (
    r"\*\*|//|[-+*/^×·÷−]|plus|minus|times|multiplied\s+by|divided\s+by|over|to\s+the\s+power\s+of|x(?=\s*[\d(])"
)
_SUM: Final = re.compile(
    rf"(?<![\w.,/-])[(\s]*-?{_NUMBER}\s*%?[)\s]*(?:(?:{_OPERATOR})[(\s]*-?{_NUMBER}\s*%?[)\s]*)+(?![\w/-])",
    re.IGNORECASE,
)
_DANGLING: Final = re.compile(r"[\s,]*\b(?:and(?:\s+then)?|then)\s*$", re.IGNORECASE)
# "3-5 days" and "24/7" are no sums, unless somebody asks for one.
_MAYBE_NOT: Final = re.compile(r"\d+(?:[-/]\d+)+")
_CUE: Final = re.compile(
    r"(?:what(?:'s|\s+is)|calculate|compute|evaluate|solve|how\s+much\s+is)\s*:?\s*$", re.IGNORECASE
)
_CUE_CHARS: Final = 80
# The rules look through runs of what may stand between words, and of digits, from each of their characters again.
_LONG_RUN: Final = re.compile(r"([\s(),:]{32})[\s(),:]+|([\d,.]{64})[\d,.]+")
_DATE: Final = re.compile(r"\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b")


def intents(text: str) -> tuple[Intent, ...]:
    """What `text` asks for, in the order it asks; the same text gives the same intents."""
    found: list[Intent] = []
    rest = text = _LONG_RUN.sub(r"\1\2", text)
    for rule in (_pages, _counts, _recalls, _remembers, _times, _percentages, _roots, _sums):
        read, rest = rule(rest)
        unique = {(intent.tool, repr(intent.arguments)): intent for intent in read}
        found += islice(unique.values(), MAX_INTENTS)
    plain = _plain(text)
    unique = {(intent.tool, repr(intent.arguments)): intent for intent in found}
    return tuple(sorted(unique.values(), key=lambda intent: _position(intent, plain)))[:MAX_INTENTS]


def _position(intent: Intent, plain: str) -> int:
    """Where the text first names the intent's subject; what can't be found there comes last."""
    at = plain.find(intent.subject)
    if at >= 0:
        return at
    # An expression was rewritten: its first number is where it was.
    number = re.search(r"\d+(?:\.\d+)?", intent.subject)
    found = re.search(rf"(?<![\d.]){re.escape(number[0])}", plain) if number else None
    return found.start() if found else len(plain)


def _pages(text: str) -> tuple[list[Intent], str]:
    urls = [match[0].rstrip(".,;:!?)]}") for match in _URL.finditer(text)]
    return [Intent(tool="http_get", arguments={"url": url}, subject=url) for url in urls], _URL.sub(" ", text)


def _counts(text: str) -> tuple[list[Intent], str]:
    match = _COUNT.search(text)
    if match is None:
        return [], text
    subject = match["quoted"] or _unquestioned(match["rest"])
    unit = match["unit"].lower()
    intent = Intent(
        tool="text_stats",
        arguments={"text": subject},
        subject=subject,
        focus=_UNITS[unit] if unit in _UNITS else _UNITS[unit.removesuffix("s")],
    )
    more, rest = _counts(text[match.end() :]) if match["quoted"] else ([], "")
    return [intent, *more], f"{text[: match.start()]} {rest}"


def _recalls(text: str) -> tuple[list[Intent], str]:
    found = []
    for match in _RECALL.finditer(text):
        query = match["query"].strip(" ,") or "everything"
        found.append(Intent(tool="memory_search", arguments={"query": query}, subject=query))
    return found, _RECALL.sub(" ", text)


def _remembers(text: str) -> tuple[list[Intent], str]:
    kept = [_DANGLING.sub("", match["text"]).strip(" ,\"'“”") for match in _REMEMBER.finditer(text)]
    found = [Intent(tool="memory_put", arguments={"text": item}, subject=item) for item in kept if item]
    return found, _REMEMBER.sub(" ", text)


def _times(text: str) -> tuple[list[Intent], str]:
    found = []
    for match in _TIME.finditer(text):
        zone = match["zone"]
        arguments: dict[str, Json] = {"timezone": zone} if zone else {}
        found.append(Intent(tool="clock", arguments=arguments, subject=zone or "UTC"))
    return found, _TIME.sub(" ", text)


def _percentages(text: str) -> tuple[list[Intent], str]:
    found = [_calculation(f"{_plain(share)} % of {_plain(whole)}") for share, whole in _PERCENT.findall(text)]
    return found, _PERCENT.sub(" ", text)


def _roots(text: str) -> tuple[list[Intent], str]:
    return [_calculation(f"sqrt({_plain(number)})") for number in _ROOT.findall(text)], _ROOT.sub(" ", text)


def _sums(text: str) -> tuple[list[Intent], str]:
    return [_calculation(expression) for expression in _expressions(_DATE.sub(" ", text))], text


def _expressions(text: str) -> Iterator[str]:
    for match in _SUM.finditer(text):
        expression = match[0].strip().lower()
        if _MAYBE_NOT.fullmatch(expression) and not _CUE.search(
            text[max(0, match.start() - _CUE_CHARS) : match.start()]
        ):
            continue
        for word, operator in _OPERATORS.items():
            expression = re.sub(
                rf"\s*{re.escape(word).replace(chr(92) + ' ', chr(92) + 's+')}\s*", f" {operator} ", expression
            )
        expression = _balanced(" ".join(_plain(expression).split()))
        if expression:
            yield expression


def _balanced(expression: str) -> str:
    """Without the stray parentheses a sentence leaves at the ends; empty if those inside don't match either."""
    while expression.count(")") > expression.count("(") and expression.endswith(")"):
        expression = expression[:-1].rstrip()
    while expression.count("(") > expression.count(")") and expression.startswith("("):
        expression = expression[1:].lstrip()
    return expression if expression.count("(") == expression.count(")") else ""


def _calculation(expression: str) -> Intent:
    return Intent(tool="calculator", arguments={"expression": expression}, subject=expression)


def _plain(number: str) -> str:
    """Without thousands separators."""
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", number)


def _unquestioned(text: str) -> str:
    """The text itself, without the end of the question around it."""
    return text.strip().removesuffix("?").strip(" \"'“”")
