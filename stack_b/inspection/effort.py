"""How dear a value is to look through. Pure, and at the speed of memory: it is asked of long ones only.

What takes long are digits and signs, of which a number or an escape may be made; a letter takes a hundredth of it. What may
be base64 is taken for what it may hold.
"""

from typing import Final

from ports.messages import Json
from ports.pii_escapes import DATA_SIGN
from stack_b.redaction.media import OUTERMOST, Place, is_media

MOST_HERE: Final = 4_096
"""Of effort: what one request, or one text of an answer, may cost the process that answers all others; about 15 ms."""
NEVER_DEAR: Final = 3_584
"""Characters, each thing of `weight.LEAST` at least: whatever they are, they are no more than `MOST_HERE`."""
_EACH: Final = 4
_LETTERS: Final = 16
"""Letters that are of the effort of one digit."""
_BLANK_WITHIN: Final = 512
"""Characters: base64 has no blank for longer than that, and prose has."""
_DEAR: Final = b"0123456789&%\\@" + bytes(range(0x80, 0x100))


def effort(value: Json, place: Place = OUTERMOST) -> int:
    """In digits."""
    if isinstance(value, str):
        return 0 if is_media(value, place) else effort_of(value)
    if isinstance(value, dict):
        return sum(effort_of(name) + effort(member, (*place, name)) for name, member in value.items())
    if isinstance(value, list):
        return sum(effort(item, place) for item in value)
    return _EACH


def effort_of(text: str) -> int:
    if len(text) > _BLANK_WITHIN and (" " not in text[:_BLANK_WITHIN] or DATA_SIGN in text):
        return _EACH + len(text.encode("utf-8", "surrogatepass"))
    given = text.encode("utf-8", "surrogatepass")
    dear = len(given) - len(given.translate(None, _DEAR))
    return _EACH + dear + len(given) // _LETTERS
