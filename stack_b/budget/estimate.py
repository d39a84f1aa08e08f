"""How many tokens a request can cost at most, and about. Pure; integers only.

A byte-level tokenizer makes at most one token of each byte, so the bytes of the JSON that a backend reads are an upper
bound for text. Media are fetched or decoded by the backend and get a flat allowance each.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from ports.messages import Json
from stack_b.canonical import ChatCall, EmbedCall
from stack_b.limits import Limits

BYTES_PER_TOKEN: Final = 4
"""Of English text, with today's tokenizers. Only used where a backend reports no usage, and marked `estimated`."""
MEDIA_TOKENS: Final = 4_096
"""Per image, sound or file: beyond what the dearest known detail level of one image costs."""

_MEDIA_TYPES: Final = frozenset({"image_url", "input_audio", "file"})
_MEDIA_WORDS: Final = tuple(f'"{kind}"'.encode() for kind in sorted(_MEDIA_TYPES))


class Ask(Struct, frozen=True, kw_only=True):
    """What is held for a request."""

    amount: int
    prompt_bound: int
    max_tokens: int
    """Per choice: what the backend is told."""
    body_bytes: int = 0
    """Of the JSON that a backend reads."""


def chat_ask(call: ChatCall, limits: Limits, *, model_max_tokens: int | None = None) -> Ask:
    body = msgspec.json.encode(call.members)
    # Nearly every request is text, and bytes are searched faster than values.
    media = sum(1 for _ in _media(call.members)) if any(map(body.__contains__, _MEDIA_WORDS)) else 0
    bound = len(body) + MEDIA_TOKENS * media
    each = _each(call, limits, model_max_tokens)
    return Ask(amount=bound + call.choices * each, prompt_bound=bound, max_tokens=each, body_bytes=len(body))


def most_written(call: ChatCall, limits: Limits, model_max_tokens: int | None) -> int:
    """How many tokens all choices together may have."""
    return call.choices * _each(call, limits, model_max_tokens)


def _each(call: ChatCall, limits: Limits, model_max_tokens: int | None) -> int:
    if call.max_tokens is not None:
        return call.max_tokens
    return min(limits.default_output_tokens, model_max_tokens or limits.max_tokens)


def embed_ask(call: EmbedCall) -> Ask:
    # Two tokens for each input: some tokenizers frame every text with a start and an end.
    bound = sum(len(text.encode()) + 2 for text in call.inputs)
    return Ask(amount=bound, prompt_bound=bound, max_tokens=0)


def estimated_tokens(size_bytes: int) -> int:
    """About how many tokens a text of `size_bytes` is; at least one if there is any."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def tokens_that_fit(fits: int, ask: Ask, *, choices: int) -> int:
    """The `max_tokens` with which a request would fit into `fits` tokens of budget."""
    return max(0, (fits - ask.prompt_bound) // choices)


def _media(value: Json) -> Iterator[None]:
    if isinstance(value, dict):
        kind = value.get("type")
        if isinstance(kind, str) and kind in _MEDIA_TYPES:
            yield None
        for member in value.values():
            yield from _media(member)
    elif isinstance(value, list):
        for item in value:
            yield from _media(item)
