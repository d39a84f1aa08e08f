"""What the operator says about routing: aliases, tiers, canaries, and models whose backends are equals. Pure.

A client's `model` is an alias, a tier or a model. An alias leads to a tier or a model, a tier to models in the order of
their quality. Entitlements are of models: what a name leads to is checked, so that no name widens what a tenant may use.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

from msgspec import Meta, Struct

from ports.errors import InvalidArgument

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Percent = Annotated[float, Meta(ge=0, le=100)]

MAX_NAMES: Final = 1_000


class Canary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of the callers of one name gets another model instead."""

    experiment: Name
    """Its name in metrics, and what the callers are drawn by: another experiment draws others."""
    name: Name
    """Whose callers: an alias, a tier or a model, as the client says it."""
    model: Name
    """What they get. A caller that may not use it stays where it was."""
    percent: Percent
    """Raising it keeps whoever was in."""
    max_error_rate: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Beyond it, over the last calls, everybody goes back until the configuration changes."""


class RoutingRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    aliases: Annotated[dict[Name, Name], Meta(max_length=MAX_NAMES)] = {}
    tiers: Annotated[dict[Name, Annotated[tuple[Name, ...], Meta(min_length=1)]], Meta(max_length=MAX_NAMES)] = {}
    canaries: tuple[Canary, ...] = ()
    spread: tuple[Name, ...] = ()
    """Models whose backends are equals: a conversation stays with one of them, where its prompt is cached. The backends of
    any other model are tried in the order they are configured."""

    def target(self, name: str) -> str:
        """The tier or model that an alias leads to; any other name leads to itself."""
        return self.aliases.get(name, name)

    def tier(self, name: str) -> str:
        """The tier that `name` is or leads to; empty where it leads to none."""
        target = self.target(name)
        return target if target in self.tiers else ""

    def models(self, name: str) -> tuple[str, ...]:
        """The models that `name` leads to, best first; a name nobody configured leads to itself."""
        target = self.target(name)
        return self.tiers.get(target, (target,))


def check_rules(rules: RoutingRules) -> None:
    """Raise `InvalidArgument` for an alias that leads to another, a name that is two things, a tier or a canary that leads
    to no model, or two canaries of one name or one experiment.
    """
    for _, problem in rule_problems(rules):
        raise InvalidArgument(f"the routing rules are not usable: {problem}")


def rule_problems(rules: RoutingRules) -> Iterator[tuple[str, str]]:
    """Where in the rules, and what."""
    names = rules.aliases.keys() | rules.tiers.keys()
    for alias, target in rules.aliases.items():
        if target in rules.aliases:
            yield (
                f".aliases.{alias}",
                f"alias {alias!r} leads to another alias, {target!r}; let it lead to a tier or a model",
            )
    for name in rules.aliases.keys() & rules.tiers.keys():
        yield f".aliases.{name}", f"{name!r} is an alias and a tier; give one of them another name"
    for tier, models in rules.tiers.items():
        for model in names.intersection(models):
            yield f".tiers.{tier}", f"tier {tier!r} names {model!r}, which is no model; tiers hold models only"
    for number, canary in enumerate(rules.canaries):
        if canary.model in names:
            yield (
                f".canaries[{number}].model",
                f"canary {canary.experiment!r} leads to {canary.model!r}, which is no model",
            )
    yield from _twice("name", (canary.name for canary in rules.canaries))
    yield from _twice("experiment", (canary.experiment for canary in rules.canaries))


def _twice(member: str, said: Iterable[str]) -> Iterator[tuple[str, str]]:
    for value, times in Counter(said).items():
        if times > 1:
            yield ".canaries", f"{times} canaries have the {member} {value!r}; one may"
