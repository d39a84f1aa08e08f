"""Everything that is wrong with a configuration, not only the first thing, and what another one would change. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ports.errors import InvalidArgument
from ports.messages import Json
from ports.policy import Policy
from ports.secrets import is_reference
from stack_b.backends.settings import BackendSettings, check_settings, references
from stack_b.budget.prices import PriceRow, check_price, check_prices
from stack_b.configuration import Configuration
from stack_b.policies.problems import TENANT
from stack_b.policies.problems import problems as policy_problems
from stack_b.routing.rules import rule_problems

MAX_DIAGNOSTICS: Final = 100
MAX_CHANGES: Final = 500

_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`$")
_MEMBERS: Final = tuple(
    sorted({*Configuration.__struct_fields__, *BackendSettings.__struct_fields__, *PriceRow.__struct_fields__})
)

Severity: TypeAlias = Literal["error", "warning"]
Step: TypeAlias = str | int


class Diagnostic(Struct, frozen=True, kw_only=True):
    code: str
    severity: Severity
    path: str
    """Where in the document, from `$`."""
    message: str
    hint: str = ""


class Change(Struct, frozen=True, kw_only=True):
    path: str
    change: Literal["added", "removed", "changed"]
    before: Json = None
    after: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What a configuration must get along with on this node."""

    beside: tuple[BackendSettings, ...] = ()
    """Backends of `AGENTOS_BACKENDS`."""
    prod: bool = False
    check_secret: Callable[[str], None] = lambda _: None
    """Raises `InvalidArgument` for a reference that leads nowhere, or where it may not."""
    check_backend: Callable[[BackendSettings], None] = lambda _: None
    """Raises `InvalidArgument` for one that an adapter of this node could not open."""


class Diagnosis(Struct, frozen=True, kw_only=True):
    configuration: Configuration | None
    """None: it can't be used."""
    diagnostics: tuple[Diagnostic, ...]


def diagnosed(document: Json, facts: NodeFacts) -> Diagnosis:
    found = list(_misshapen(document))
    if found:
        return Diagnosis(configuration=None, diagnostics=tuple(found[:MAX_DIAGNOSTICS]))
    configuration = msgspec.convert(document, Configuration)
    found = list(_problems(configuration, facts))
    usable = all(one.severity != "error" for one in found)
    return Diagnosis(configuration=configuration if usable else None, diagnostics=tuple(found[:MAX_DIAGNOSTICS]))


def _misshapen(document: Json) -> Iterator[Diagnostic]:
    """What has not the shape of a configuration. What was found is taken out, to see what is behind it."""
    rest = _Rest(document)
    # What was reported and taken out is not reported as missing.
    taken: set[str] = set()
    for _ in range(2 * MAX_DIAGNOSTICS):
        try:
            msgspec.convert(rest.value, Configuration)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at ")
        except RecursionError:
            yield Diagnostic(code="shape", severity="error", path="$", message="it is nested too deeply")
            return
        else:
            return
        steps = _located(rest.value, place.strip("`") or "$", reason)
        missing, unknown = _MISSING.match(reason), _UNKNOWN.match(reason)
        said = rest.said(steps)
        if missing is None or path_of((*said, missing[1])) not in taken:
            yield _shape(said, reason, unknown[1] if unknown else None, missing[1] if missing else None)
        where = (*steps, unknown[1]) if unknown else steps
        if not where:
            return
        taken.add(path_of(rest.said(where)))
        rest.take_out(where)


class _Rest:
    """A document, and what is left of it. Items keep the place that they had in their list."""

    def __init__(self, document: Json) -> None:
        self.value: Any = msgspec.json.decode(msgspec.json.encode(document))
        self._places: dict[int, tuple[list[Any], list[int]]] = {}

    def take_out(self, steps: tuple[Step, ...]) -> None:
        *before, last = steps
        inside = _at(self.value, before)
        if isinstance(inside, list):
            del self._of(inside)[int(last)]
            del inside[int(last)]
        else:
            inside.pop(last, None)

    def said(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Where that was in the document."""
        found: list[Step] = []
        value: Any = self.value
        for step in steps:
            if isinstance(value, list):
                found.append(self._of(value)[int(step)])
                value = value[int(step)]
            else:
                found.append(step)
                value = value.get(step)
        return tuple(found)

    def _of(self, inside: list[Any]) -> list[int]:
        return self._places.setdefault(id(inside), (inside, list(range(len(inside)))))[1]


def _shape(steps: tuple[Step, ...], reason: str, unknown: str | None, missing: str | None) -> Diagnostic:
    if unknown is not None:
        close = get_close_matches(unknown, _MEMBERS, n=1)
        return Diagnostic(
            code="unknown_member",
            severity="error",
            path=path_of((*steps, unknown)),
            message="there is no such member here",
            hint=f"did you mean {close[0]!r}?" if close else "docs/gateway.md lists the members",
        )
    if missing is not None:
        return Diagnostic(
            code="missing_member", severity="error", path=path_of(steps), message=f"the member {missing!r} is missing"
        )
    return Diagnostic(code="shape", severity="error", path=path_of(steps), message=reason)


def _located(value: Any, place: str, reason: str) -> tuple[Step, ...]:
    """The steps to `place`, whose `[...]` stands for any of an object's values."""
    steps: tuple[Step, ...] = ()
    for match in _STEP.finditer(place.removeprefix("key in ").removeprefix("$")):
        name, index, any_of = match.groups()
        if any_of is None:
            steps = (*steps, name if name is not None else int(index))
            continue
        inside = _at(value, steps)
        if not isinstance(inside, dict):
            return steps
        for key in inside:
            alone = _with_only(value, steps, key)
            try:
                msgspec.convert(alone, Configuration)
            except msgspec.ValidationError as error:
                if str(error).startswith(reason):
                    steps = (*steps, key)
                    break
        else:
            return steps
    return steps


def _with_only(value: Any, steps: tuple[Step, ...], key: str) -> Any:
    copy = msgspec.json.decode(msgspec.json.encode(value))
    inside = _at(copy, steps)
    for other in [name for name in inside if name != key]:
        del inside[other]
    return copy


def _at(value: Any, steps: Iterable[Step]) -> Any:
    for step in steps:
        value = value[step]
    return value


def _problems(found: Configuration, facts: NodeFacts) -> Iterator[Diagnostic]:
    yield from _backend_problems(found.backends, facts)
    for place, problem in rule_problems(found.routing):
        what, _, hint = problem.partition("; ")
        yield Diagnostic(code="routing", severity="error", path=f"$.routing{place}", message=what, hint=hint)
    yield from _price_problems(found.prices)
    yield from _policy_problems(found.policies)
    yield from _led_nowhere(found, facts)


def _backend_problems(backends: Sequence[BackendSettings], facts: NodeFacts) -> Iterator[Diagnostic]:
    beside = {backend.name for backend in facts.beside}
    names: dict[str, int] = {}
    for number, backend in enumerate(backends):
        path = f"$.backends[{number}]"
        if backend.name in names:
            first = f"$.backends[{names[backend.name]}]"
            yield _error("duplicate_name", f"{path}.name", f"{first} is called {backend.name!r} too", "rename one")
        elif backend.name in beside:
            text = f"AGENTOS_BACKENDS has a backend {backend.name!r} too"
            yield _error("duplicate_name", f"{path}.name", text, "rename one, or take it out there")
        names.setdefault(backend.name, number)
        try:
            check_settings((backend,))
            facts.check_backend(backend)
        except InvalidArgument as error:
            yield _error("backend", path, error.message)
        if backend.kind == "demo" and facts.prod:
            yield _error("demo_in_prod", f"{path}.kind", "prod does not serve the demo backend", "remove it")
        for member, reference in references(backend):
            yield from _secret_problems(reference, f"{path}.{member}", facts)


def _secret_problems(reference: str, path: str, facts: NodeFacts) -> Iterator[Diagnostic]:
    if path.endswith(".api_key") and not is_reference(reference):
        # Never with what is there: it may be the secret.
        hint = "write env:NAME, file:/path or secret:name, and change the key if this document was shown to anybody"
        yield _error("secret_in_plain", path, "a secret stands here in plain", hint)
        return
    try:
        facts.check_secret(reference)
    except InvalidArgument as error:
        what, _, hint = error.message.partition("; ")
        yield _error("secret", path, what, hint)


def _price_problems(rows: Sequence[PriceRow]) -> Iterator[Diagnostic]:
    wrong = False
    for number, row in enumerate(rows):
        try:
            check_price(row)
        except InvalidArgument as error:
            wrong = True
            yield _error("price", f"$.prices[{number}]", error.message)
    if not wrong:
        try:
            check_prices(rows)
        except InvalidArgument as error:
            yield _error("price", "$.prices", error.message, "keep one of them")


def _policy_problems(policies: Mapping[str, Policy]) -> Iterator[Diagnostic]:
    for name, policy in policies.items():
        for problem in policy_problems(policy):
            yield _error("policy", f"$.policies.{name}", problem, "docs/policies.md")
        if name == TENANT:
            text = "this name is for what tenants say themselves"
            yield _error("policy", f"$.policies.{name}", text, "take another")


def _led_nowhere(found: Configuration, facts: NodeFacts) -> Iterator[Diagnostic]:
    """Names for models that no backend says it has. One whose models are not listed may have them."""
    backends = (*found.backends, *facts.beside)
    served = {model.id for backend in backends for model in backend.models}
    if not backends or any(not backend.models for backend in backends):
        return
    for name in (*found.routing.aliases, *found.routing.tiers):
        for model in found.routing.models(name):
            if model not in served:
                place = "aliases" if name in found.routing.aliases else "tiers"
                yield Diagnostic(
                    code="nobody_serves",
                    severity="warning",
                    path=f"$.routing.{place}.{name}",
                    message=f"no backend of this configuration lists the model {model!r}",
                    hint="list it under a backend's models, unless one that is found by itself has it",
                )


def _error(code: str, path: str, message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(code=code, severity="error", path=path, message=message, hint=hint)


def path_of(steps: Iterable[Step]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


# What tells the items of a list apart, where that is not their place.
_NAMED_BY: Final = (("name",), ("id",), ("experiment",), ("model", "valid_from"))


def changes(before: Json, after: Json) -> tuple[Change, ...]:
    """From one document to another, at most `MAX_CHANGES`. Items with a name are compared by it; their order counts too."""
    return tuple(one for one, _ in zip(_changes("$", before, after), range(MAX_CHANGES), strict=False))


def _changes(path: str, before: Json, after: Json) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_members(path, {f".{k}": v for k, v in before.items()}, {f".{k}": v for k, v in after.items()})
    elif isinstance(before, list) and isinstance(after, list):
        ours, theirs = _by_name(before), _by_name(after)
        if ours is None or theirs is None:
            if before != after:
                yield Change(path=path, change="changed", before=before, after=after)
            return
        yield from _of_members(path, ours, theirs)
        kept = [name for name in ours if name in theirs], [name for name in theirs if name in ours]
        if kept[0] != kept[1]:
            yield Change(path=path, change="changed", before="another order", after="another order")
    elif before != after:
        yield Change(path=path, change="changed", before=before, after=after)


def _of_members(path: str, before: dict[str, Json], after: dict[str, Json]) -> Iterator[Change]:
    for name in (*before, *(name for name in after if name not in before)):
        if name not in after:
            yield Change(path=path + name, change="removed", before=before[name])
        elif name not in before:
            yield Change(path=path + name, change="added", after=after[name])
        else:
            yield from _changes(path + name, before[name], after[name])


def _by_name(items: list[Json]) -> dict[str, Json] | None:
    """The items by what names them; None when something has no name, or two have the same."""
    for members in _NAMED_BY:
        if all(isinstance(item, dict) and all(member in item for member in members) for item in items):
            named = {f"[{'@'.join(str(item[member]) for member in members)}]": item for item in items}
            return named if len(named) == len(items) else None
    return None if items else {}
