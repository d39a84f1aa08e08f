"""The scope table: every route of a surface, what it needs, deny by default.

A surface declares its routes here and serves them with a framework. `RouteTable.with_denied` compares the two: a route
that is served but not declared answers 403.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ports.context import SCOPES

PUBLIC: Final = "public"
LOOPBACK: Final = "loopback"
DENIED: Final = "denied"
IDENTIFIED: Final = "identified"
"""Whoever has a valid token, whatever it may do."""

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")


class Route(Struct, frozen=True, kw_only=True):
    """One operation. `template` is the public path, such as `/v1/runs/{run_id}:cancel`."""

    method: Method
    template: str
    access: str
    """A scope, `public`, `identified`, or `loopback` (peers on this machine only; others see 404)."""
    mutation: bool = False
    """Needs an `Idempotency-Key`."""
    max_body_bytes: int = 1024 * 1024
    query: tuple[str, ...] | None = None
    """The query parameters it takes; another one is refused. None leaves the query to the endpoint."""

    wide: bool = False
    """Parameters may hold ':' and '/', as names that others chose do (models). Such a route can't have a verb."""


class Matched(Struct, frozen=True):
    route: Route
    inner_path: str
    """The path as the framework knows it."""


def public_template(inner: str) -> str:
    """Frameworks match whole segments, so a custom verb is served as one of its own: `{id}/:cancel` is `{id}:cancel`."""
    return inner.replace("}/:", "}:")


class RouteTable:
    """Matches requests to routes; literal paths win over parameters, and earlier declarations over later ones."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._literal: dict[str, dict[str, Matched]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_template: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            if route.access not in SCOPES | {PUBLIC, LOOPBACK, DENIED, IDENTIFIED}:
                raise ValueError(f"{route.template}: {route.access!r} is not a scope")
            by_template.setdefault(route.template, {})[route.method] = route
        for template, methods in by_template.items():
            if _PARAMETER.search(template):
                wide = any(route.wide for route in methods.values())
                self._patterns.append((_pattern(template, wide=wide), methods))
            else:
                self._literal[template] = {
                    method: Matched(route, self._inner(route, template)) for method, route in methods.items()
                }

    def match(self, method: str, path: str) -> Matched | tuple[str, ...] | None:
        """The route; or the methods this path has when `method` is none of them; or None for an unknown path."""
        literal = self._literal.get(path)
        if literal is not None:
            return literal.get(method) or tuple(sorted(literal))
        for pattern, methods in self._patterns:
            if pattern.fullmatch(path):
                route = methods.get(method)
                return tuple(sorted(methods)) if route is None else Matched(route, self._inner(route, path))
        return None

    def with_denied(self, served: Iterable[tuple[str, str]]) -> "RouteTable":
        """This table, plus a denying route for each (method, public template) that is served but not declared."""
        declared = {(route.method, route.template) for route in self.routes}
        extra = [
            Route(method=method, template=template, access=DENIED)  # type: ignore[arg-type]  # the framework's strings
            for method, template in served
            if (method, template) not in declared
        ]
        return RouteTable((*self.routes, *extra))

    @staticmethod
    def _inner(route: Route, path: str) -> str:
        if "}:" not in route.template:
            return path
        head, _, verb = path.rpartition(":")
        return f"{head}/:{verb}"


def _pattern(template: str, *, wide: bool) -> re.Pattern[str]:
    parts = _PARAMETER.split(template)
    # Odd items are parameter names. An id never holds ':' or '/', so that a verb is never read as part of an id.
    parameter = ".+" if wide else "[^/:]+"
    return re.compile("".join(re.escape(part) if i % 2 == 0 else parameter for i, part in enumerate(parts)))
