"""Joining what comes in pieces. Pure."""

from ports.messages import Json


def joined(known: Json, more: Json) -> Json:
    """Texts and lists go on, objects member by member; of anything else the last word counts."""
    if known is None or more is None:
        return known if more is None else more
    if isinstance(known, dict) and isinstance(more, dict):
        return known | {name: joined(known.get(name), value) for name, value in more.items()}
    if isinstance(known, str) and isinstance(more, str):
        return known + more
    if isinstance(known, list) and isinstance(more, list):
        return [*known, *more]
    return more
