"""Ways to write a text so that a pattern doesn't see it and a model does."""

from collections.abc import Callable
from typing import Final

from conformance.pii import ENCODINGS


def tagged(text: str) -> str:
    """In characters of a block that shows nothing."""
    return "".join(chr(0xE0000 + ord(char)) for char in text)


def selected(text: str) -> str:
    """In variation selectors, which stand for bytes."""
    return "".join(chr(0xE0100 + ord(char) - 16) for char in text)


def html(text: str) -> str:
    return "".join(f"&#{ord(char)};" for char in text)


def percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def units(text: str, backslashes: int = 1) -> str:
    return "".join("\\" * backslashes + f"u{ord(char):04x}" for char in text)


def between(sign: str) -> Callable[[str], str]:
    return lambda text: "".join(char + sign for char in text)


def in_groups(sign: str) -> Callable[[str], str]:
    return lambda text: sign.join(text[at : at + 4] for at in range(0, len(text), 4))


ANY_TEXT: Final[dict[str, Callable[[str], str]]] = {
    **ENCODINGS,
    "tags": tagged,
    "tags on": lambda text: "".join(char + tagged("x") for char in text),
    "every other a tag": lambda text: "".join(tagged(char) if at % 2 else char for at, char in enumerate(text)),
    "selectors": selected,
    "combining": between("\u0301"),
    "overlay": between("\u0336"),
    "enclosing": between("\ufe0f\u20e3"),
    "bidi": between("\u202e"),
    "isolates": between("\u2066"),
    "filler": between("\u3164"),
    "free for use": between("\U000e0fff"),
    "controls": between("\x08"),
    "late controls": between("\x9b"),
    "HTML without an end": lambda text: "".join(f"&#{ord(char)}" for char in text),
    "HTML with noughts": lambda text: "".join(f"&#{ord(char):012};" for char in text),
    "HTML twice": lambda text: html(text).replace("&", "&amp;"),
    "HTML in percent": lambda text: percent(html(text)),
    "percent twice": lambda text: percent(text).replace("%", "%25"),
    "percent three times": lambda text: percent(text).replace("%", "%2525"),
    "percent in HTML": lambda text: html(percent(text)),
    "full width in percent": lambda text: percent(ENCODINGS["full width"](text)),
    "JSON in JSON in JSON": lambda text: units(text, 4),
    "JSON, four deep": lambda text: units(text, 8),
    "JSON in percent": lambda text: percent(units(text)),
    "hexadecimal": lambda text: "".join(f"\\x{ord(char):02x}" for char in text),
    "braces": lambda text: "".join(f"\\u{{{ord(char):x}}}" for char in text),
    "eight digits": lambda text: "".join(f"\\U{ord(char):08x}" for char in text),
}
"""Each works for any text of ASCII."""

DIGITS: Final[dict[str, Callable[[str], str]]] = {
    "circled": lambda text: "".join("⓪①②③④⑤⑥⑦⑧⑨"[int(char)] for char in text),
    "in brackets": lambda text: "".join("0⑴⑵⑶⑷⑸⑹⑺⑻⑼"[int(char)] for char in text),
    "with full stops": lambda text: "".join("0⒈⒉⒊⒋⒌⒍⒎⒏⒐"[int(char)] for char in text),
    "black": lambda text: "".join("⓿❶❷❸❹❺❻❼❽❾"[int(char)] for char in text),
    "raised": lambda text: "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(char)] for char in text),
    "keycaps": lambda text: "".join(f"{char}\ufe0f\u20e3" for char in text),
    "segments": lambda text: "".join(chr(0x1FBF0 + int(char)) for char in text),
    **{
        f"U+{ord(sign):04X} in groups": in_groups(sign)
        for sign in "\u2028\u2029\x85\v\f\x1c\u2800\u2212\u2043\u3000\u202f"
    },
}
"""For numbers."""
