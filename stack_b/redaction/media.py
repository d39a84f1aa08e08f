"""What of a request or an answer is bytes that no model reads as a text: images, sound, films and documents. Pure.

They travel as base64, and a detector that took a stretch of it for a card number would destroy them. Card numbers, IBANs
and keys are in that alphabet too, so it is spared a look only where media stand, and only if it begins as media do.
"""

import binascii
import re
from typing import Final, TypeAlias

from ports.pii_escapes import textual

Place: TypeAlias = tuple[str, ...]
"""Where a value stands: the names of the members that it is in, from outside on. Lists have none."""

OUTERMOST: Final[Place] = ()
NOWHERE: Final[Place] = ("",)
"""Of what is no request and no message: arguments, schemas, what is said beside an answer. Media have no place in it."""
MESSAGE: Final[Place] = ("messages",)
"""Of a message, also of one in an answer."""

_PARTS: Final = frozenset({(*MESSAGE, "content"), (*MESSAGE, "content", "content"), (*MESSAGE, "images")})
"""Where parts of a message stand; those of a tool's result are in a part."""
_IN_PARTS: Final = frozenset(
    {
        ("audio", "data"), ("audio_url", "url"), ("file", "file_data"), ("image_url", "url"), ("input_audio", "data"),
        ("source", "data"), ("video_url", "url"),
    }
)  # fmt: skip
"""Of a member in a part: the name of the object it is in, and its own."""
_FILES: Final = frozenset({("file", "file_data"), ("source", "data")})
"""Those of them that may be texts."""
_SPOKEN: Final = (*MESSAGE, "audio", "data")
"""A model's own voice."""

_MEDIA: Final = re.compile(r"(?:data:([\w.+/-]{1,100});base64,)?([A-Za-z0-9+/]{256,}={0,2})")
_SHORTEST: Final = 255
_SHOWN: Final = re.compile(r"(?:image|audio|video)/", re.IGNORECASE)
_HEAD: Final = 1_024
_FIRST: Final = 64
"""Characters of base64 in which a signature is."""

SIGNATURES: Final = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0\0\0\0|II\x2a\0|MM\0\x2a|\0\0[\x01\x02]\0"  # images
    rb"|RIFF.{4}(?:WEBP|WAVE|AVI )|FORM.{4}AIF[FC]|.{4}ftyp|\x1a\x45\xdf\xa3|OggS|fLaC"  # in containers
    rb"|ID3[\x02-\x04]|\xff[\xe0-\xff]|#!AMR"  # sound
    rb"|%PDF-|PK\x03\x04|\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",  # documents
    re.DOTALL,
)
"""First bytes that nothing but media and documents have."""


def is_media(text: str, place: Place) -> bool:
    """Whether it is bytes and no text: by where it stands, by what it looks like and by its first bytes."""
    if len(text) <= _SHORTEST or not _may_hold(place) or (media := _MEDIA.fullmatch(text)) is None:
        return False
    kind, payload = media[1] or "", media[2]
    if SIGNATURES.match(binascii.a2b_base64(payload[:_FIRST])) is None:
        return False
    if _SHOWN.match(kind) or (not kind and place[-2:] not in _FILES):
        return True
    # A file may be a text. Most tell by their first bytes that they are none.
    kind = kind or "?"
    return textual(payload[:_HEAD], kind) is None or textual(payload, kind) is None


def _may_hold(place: Place) -> bool:
    return place == _SPOKEN or (place[-2:] in _IN_PARTS and place[:-2] in _PARTS)
