"""Counting what a text is made of. Models are bad at counting."""

import re
from typing import Final

from adapters.builtin_tools.tool import Arguments, Tool, object_schema
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolCall, ToolSpec

MAX_TEXT_CHARS: Final = 200_000

# Letters and digits, joined by apostrophes or hyphens ("don't" and "well-kept" are one word each), and numbers whole.
_WORD: Final = re.compile(r"[^\W_]+(?:(?:['’\-]|(?<=\d)[.,](?=\d))[^\W_]+)*")
_SENTENCE_END: Final = re.compile(r"[.!?…]+(?=[\s\"'”’)\]]|$)|[。！？]+")  # Chinese and Japanese ends, on purpose

SPEC: Final = ToolSpec(
    name="text_stats",
    description="Counts the words, unique words, characters, sentences, lines and paragraphs of a text.",
    input_schema=object_schema(
        {"text": {"type": "string", "maxLength": MAX_TEXT_CHARS, "description": "the text to count, verbatim"}},
        required=("text",),
    ),
    effect="pure",
)


async def _act(_auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
    return count(arguments["text"])


def text_stats() -> Tool:
    return Tool(spec=SPEC, act=_act)


def count(text: str) -> dict[str, Json]:
    """Counts as people would: case does not make a word another one, and an unfinished sentence is a sentence."""
    words = _WORD.findall(text)
    lengths = [len(word) for word in words]
    return {
        "words": len(words),
        "unique_words": len({word.casefold() for word in words}),
        "characters": len(text),
        "characters_without_spaces": sum(not char.isspace() for char in text),
        "sentences": _sentences(text),
        "lines": len(text.splitlines()),
        "paragraphs": sum(1 for block in re.split(r"\n[ \t]*\n", text) if block.strip()),
        "average_word_length": round(sum(lengths) / len(lengths), 2) if lengths else 0,
    }


def _sentences(text: str) -> int:
    ended = 0
    start = 0
    for end in _SENTENCE_END.finditer(text):
        ended += _WORD.search(text, start, end.start()) is not None
        start = end.end()
    return ended + (_WORD.search(text, start) is not None)
