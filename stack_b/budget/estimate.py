"""How many tokens a request can cost at most, and about. Pure; integers only.

A byte-level tokenizer makes at most one token of each byte, so the bytes of the JSON that a backend reads are an upper
bound for text. Media are decoded by the backend and get a flat allowance each; what is not understood holds all that a
model reads.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ports.errors import InvalidArgument
from ports.messages import Json
from stack_b.backends.catalog import Candidate
from stack_b.canonical import ChatCall, EmbedCall, texts_in
from stack_b.limits import Limits

BYTES_PER_TOKEN: Final = 4
"""Of English text, with today's tokenizers. Only used where a backend reports no usage, and marked `estimated`."""
MEDIA_TOKENS: Final = 4_096
"""Per image, sound or file: beyond what the dearest known detail level of one image costs."""

UNREAD_TOKENS: Final = 1_048_576
"""Once per request, where a part of it is not understood, or is fetched by the backend and no image: as much as the models
of today read. The body's size bounds nothing there."""

_MEDIA_TYPES: Final = frozenset({"audio_url", "image_url", "input_audio", "file", "video_url"})
_TEXT_TYPES: Final = frozenset({"text", "refusal", "reasoning", "redacted_thinking", "thinking"})
_INLINE: Final = {"audio_url": "url", "file": "file_data", "video_url": "url"}
"""Where those kinds hold what would else have to be fetched."""
_SCHEME_CHARS: Final = 32
_BESIDE: Final = frozenset({"attachments", "audio", "audios", "documents", "files", "images", "videos"})
"""Members of a message in which servers take media."""
_THOUGHTS: Final = ("reasoning", "think", "thinking")
"""Members that say how much is written before the answer."""
_TYPE: Final = b'"type"'
_MEDIA_WORDS: Final = tuple(f'"{kind}"'.encode() for kind in sorted(_MEDIA_TYPES))


class Ask(Struct, frozen=True, kw_only=True, gc=False):
    """What is held for a request."""

    amount: int
    prompt_bound: int
    max_tokens: int
    """Per choice: what the backend is told, at most."""
    choices: int = 1
    body: bytes = b""
    """The JSON that a backend reads."""

    @property
    def holds_all(self) -> bool:
        """Whether `amount` is for all that may be written, and not for a slice of it."""
        return self.amount >= self.prompt_bound + self.choices * self.max_tokens


def all_capable(call: ChatCall, candidates: tuple[Candidate, ...]) -> bool:
    """Whether `capable` has nothing to leave out, as mostly."""
    asked = call.max_tokens
    if asked is not None:
        for one in candidates:
            if one.card.max_tokens is not None and asked > one.card.max_tokens:
                return False
    return True


def capable(call: ChatCall, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Those that may write as much as is asked for.

    Raises:
        InvalidArgument: none may.
    """
    asked = call.max_tokens
    if asked is None or all_capable(call, candidates):
        return candidates
    found = tuple([one for one in candidates if one.card.max_tokens is None or asked <= one.card.max_tokens])
    if not found:
        most = max(one.card.max_tokens or 0 for one in candidates)
        raise InvalidArgument(
            f"max_tokens is at most {most} for this model", code="validation_failed", details={"path": "$.max_tokens"}
        )
    return found


def chat_ask(call: ChatCall, limits: Limits, *, model_max_tokens: int | None = None) -> Ask:
    body = msgspec.json.encode(call.members)
    bound = len(body)
    if texts_in(call, call.members) is None:
        # Nearly every request is text, and bytes are searched faster than values.
        typed = _TYPE in body and any(map(body.__contains__, _MEDIA_WORDS))
        media = sum(1 for _ in _media(call.members)) if typed else 0
        bound += MEDIA_TOKENS * media + (UNREAD_TOKENS if _is_unread(call.members) else 0)
    each = _each(call, limits, model_max_tokens)
    return Ask(
        amount=bound + call.choices * each,
        prompt_bound=bound,
        max_tokens=each,
        choices=call.choices,
        body=body,
    )


def check_thoughts(call: ChatCall, ask: Ask) -> None:
    """Raise `InvalidArgument` where more may be thought than is held: thoughts are billed as what is written."""
    for member in _THOUGHTS:
        for tokens in _numbers(call.members.get(member)):
            if not 0 <= tokens <= ask.max_tokens:
                raise InvalidArgument(
                    f"{member} takes 0 to {ask.max_tokens} tokens here, as many as may be written; ask for a max_tokens "
                    "that has room for them",
                    details={"path": f"$.{member}"},
                )


def _numbers(value: Json) -> Iterator[float]:
    """Also those that are written as texts."""
    if isinstance(value, dict):
        for member in value.values():
            yield from _numbers(member)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, str):
        with suppress(ValueError):
            yield float(value)


def most_written(call: ChatCall, limits: Limits, model_max_tokens: int | None) -> int:
    """How many tokens all choices together may have."""
    return call.choices * _each(call, limits, model_max_tokens)


def _each(call: ChatCall, limits: Limits, model_max_tokens: int | None) -> int:
    if call.max_tokens is not None:
        return call.max_tokens
    return min(limits.default_output_tokens, model_max_tokens or limits.max_tokens)


def sliced(ask: Ask, slice_tokens: int) -> Ask:
    """What is held at first where more can be held as the answer is written: no more than a slice of output per choice."""
    return replace(ask, amount=ask.prompt_bound + ask.choices * min(ask.max_tokens, slice_tokens))


def most_of(candidates: Iterable[Candidate]) -> int | None:
    """The most that any of them may write per choice; None: not known of all."""
    most = [one.card.max_tokens for one in candidates]
    known = [one for one in most if one is not None]
    return max(known) if known and len(known) == len(most) else None


def embed_ask(call: EmbedCall) -> Ask:
    # Two tokens for each input: some tokenizers frame every text with a start and an end.
    bound = sum(len(text.encode()) + 2 for text in call.inputs)
    return Ask(amount=bound, prompt_bound=bound, max_tokens=0)


def estimated_tokens(size_bytes: int) -> int:
    """About how many tokens a text of `size_bytes` is; at least one if there is any."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def _is_unread(members: dict[str, Json]) -> bool:
    for message in members.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list) and not all(map(_understood, content)):
            return True
        if not _BESIDE.isdisjoint(message) and any(message.get(name) is not None for name in _BESIDE):
            return True
    return False


def _understood(part: Json) -> bool:
    """Whether what it costs at most is known: text by its bytes, an image, and what is inline by its bytes too."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or "content" in part:
        return False
    if kind in _INLINE:
        held = part.get(kind)
        held = {"url": held} if isinstance(held, str) else held
        data = held.get(_INLINE[kind]) if isinstance(held, dict) else None
        if not isinstance(data, str) or held.get("file_id") is not None:
            return False
        return data.startswith("data:") or (kind == "file" and "://" not in data[:_SCHEME_CHARS])
    return kind in _TEXT_TYPES or kind in _MEDIA_TYPES


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
