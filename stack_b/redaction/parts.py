"""Texts in parts, which a model reads as one: what is cut in two by the end of a part is one thing to it. Pure."""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from ports.messages import Json
from ports.pii import Span


def texts_of(items: Sequence[Json]) -> list[str]:
    """The texts of a list's parts, in order; empty where no two of them are texts."""
    found = [text for _, text in map(said_by, items) if text is not None]
    return found if len(found) > 1 else []


def said_by(item: Json) -> tuple[str, str | None]:
    """What a part says, and by which member. A refusal is read like any other text."""
    if isinstance(item, dict):
        for name in ("text", "refusal"):
            if isinstance(item.get(name), str):
                return name, item[name]
    return "", None


def is_cut(spans: Sequence[Span], parts: Sequence[str]) -> bool:
    """Whether one of the spans, of all parts in one, goes on over the end of a part."""
    ends = list(accumulate(map(len, parts)))[:-1]
    for span in spans:
        # The first end behind its start. Of spans and parts there are as many as fit into a request.
        at = bisect_right(ends, span.start)
        if at < len(ends) and ends[at] < span.end:
            return True
    return False


def joined(value: Json, lists: Collection[int]) -> Json:
    """`value`, where each of these lists (by `id`) has its texts in the first part that has one."""
    if isinstance(value, dict):
        return {name: joined(member, lists) for name, member in value.items()}
    if not isinstance(value, list):
        return value
    if id(value) not in lists:
        return [joined(item, lists) for item in value]
    whole: str | None = "".join(texts_of(value))
    items: list[Json] = []
    for item in value:
        name, text = said_by(item)
        if text is None:
            items.append(joined(item, lists))
        elif whole is not None:
            items.append({**item, name: whole})
            whole = None
    return items
