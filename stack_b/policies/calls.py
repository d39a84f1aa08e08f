"""Conditions on the arguments of a function that a model calls. An allow is read narrowly, a deny widely. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ports.errors import InvalidArgument
from ports.http.strict_json import parse
from ports.messages import Json
from ports.policy import Argument, Effect, Scalar
from stack_b.policies.patterns import compiled
from stack_b.policies.text import canonical_text, canonical_texts


class Unreadable(Exception):
    """Arguments that two readers may read differently."""


def read_arguments(given: Json) -> dict[str, Json]:
    """What a tool would read. Raises `Unreadable` for what is no object, or has a member twice."""
    if isinstance(given, str):
        if not given.strip():
            return {}
        try:
            given = parse(given.encode("utf-8", "surrogatepass"))
        except InvalidArgument as error:
            raise Unreadable(error.message) from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Unreadable("not an object")
    return given


class Arguments:
    """All conditions of one rule."""

    def __init__(self, conditions: Sequence[Argument], effect: Effect) -> None:
        """Raises `InvalidArgument` for a pattern that can't be used."""
        self._conditions = [_Condition(condition, effect) for condition in conditions]
        self._allows = effect == "allow"

    def hold(self, given: Json) -> bool:
        """What can't be read is nothing that was allowed, and anything that was denied."""
        if not self._conditions:
            return True
        try:
            arguments = read_arguments(given)
        except Unreadable:
            return not self._allows
        return all(condition.holds(arguments) for condition in self._conditions)


class _Condition:
    def __init__(self, said: Argument, effect: Effect) -> None:
        self._path = said.path.split(".")
        self._said = said
        self._allows = effect == "allow"
        self._patterns: list[Any] = [compiled(one, case_sensitive=self._allows) for one in said.patterns]

    def holds(self, arguments: dict[str, Json]) -> bool:
        found = list(_at(arguments, self._path))
        if self._allows:
            return bool(found) and all(self._is_so(value) for value in found)
        # A tool that takes one of something may take a list of it.
        return any(self._is_so(one) for value in found for one in _leaves(value))

    def _is_so(self, value: Json) -> bool:
        said = self._said
        same = _same if self._allows else _alike
        if said.values is not None and not any(same(value, one) for one in said.values):
            return False
        if self._patterns and not self._matches(value):
            return False
        return (said.least is None and said.most is None) or self._within(value)

    def _matches(self, value: Json) -> bool:
        if self._allows and not isinstance(value, str):
            return False
        text = _written(value)
        readings = (text,) if self._allows else (text, *canonical_texts(text))
        return any(pattern.fullmatch(text) is not None for pattern in self._patterns for text in readings)

    def _within(self, value: Json) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            # A number as text is a number to many a tool: not to be allowed, and to be denied.
            return not self._allows and not isinstance(value, bool) and _number(value, self._said)
        return _between(value, self._said)


def _same(value: Json, one: Json) -> bool:
    """`true` and 1 are two things."""
    return bool(value == one) and isinstance(value, bool) == isinstance(one, bool)


def _alike(value: Json, one: Scalar) -> bool:
    """The same to some tool, however it is written."""
    if _same(value, one):
        return True
    given, said = _written(value), _written(one)
    sought = canonical_text(said).strip().casefold()
    if any(reading.strip().casefold() == sought for reading in canonical_texts(given)):
        return True
    return isinstance(one, int | float) and not isinstance(one, bool) and isinstance(value, str) and _equals(value, one)


def _equals(text: str, one: float) -> bool:
    try:
        return float(text) == one
    except ValueError:
        return False


def _written(value: Json) -> str:
    """As it stands in JSON, texts without their quotation marks."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _leaves(value: Json) -> Iterator[Json]:
    if isinstance(value, dict):
        for member in value.values():
            yield from _leaves(member)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _between(value: float, said: Argument) -> bool:
    return (said.least is None or value >= said.least) and (said.most is None or value <= said.most)


def _number(value: Json, said: Argument) -> bool:
    try:
        return _between(float(value), said)
    except (TypeError, ValueError):
        return False


def _at(value: Json, path: Sequence[str]) -> Iterator[Json]:
    if not path:
        yield value
        return
    if path[0] == "*":
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for item in items:
            yield from _at(item, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])
