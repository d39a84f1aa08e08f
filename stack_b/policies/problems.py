"""Everything that is wrong with a policy, said at once. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from ports.errors import InvalidArgument
from ports.messages import Json
from ports.policy import MAX_RULES, Policy, Rule, Stage
from stack_b.policies.rules import CompiledRule

TENANT: Final = "tenant"
"""What a tenant's own policy is called in reasons."""
MAX_BYTES: Final = 256 * 1024
USABLE: Final[Mapping[str, tuple[Stage, ...]]] = {
    "keywords": ("input", "output"),
    "patterns": ("input", "output"),
    "max_tokens": ("input",),
    "functions": ("offer", "call"),
    "arguments": ("call",),
}
"""Where a condition means something; those that aren't named do everywhere."""


def parse_policy(raw: bytes | str) -> Policy:
    """The policy in a JSON document.

    Raises:
        InvalidArgument: with every problem in it, in `details.problems` too.
    """
    if len(raw) > MAX_BYTES:
        raise InvalidArgument(f"a policy is at most {MAX_BYTES:,} bytes")
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise _unusable([f"it is not JSON: {reason}"]) from None
    policy, found = _converted(given)
    if found := [*found, *problems(policy)]:
        raise _unusable(found)
    return policy


def check_policy(policy: Policy) -> None:
    """Raise `InvalidArgument` with every problem of a tenant's own policy."""
    if found := problems(policy):
        raise _unusable(found)


def check_policies(policies: Mapping[str, Policy]) -> None:
    """Raise `InvalidArgument` with every problem of the node's policies, by their names."""
    found = [f"policies.{name}: {problem}" for name, policy in policies.items() for problem in problems(policy)]
    if TENANT in policies:
        found.append(f"policies.{TENANT}: this name is for what tenants say themselves; take another")
    if found:
        raise _unusable(found)


def problems(policy: Policy) -> list[str]:
    """What can't be used, or would do nothing."""
    found = [f"{times} rules have the id {rule!r}" for rule, times in _times(policy).items() if times > 1]
    for number, rule in enumerate(policy.rules):
        found += [f"rule {rule.id!r}: {problem}" for problem in _of_rule(rule, policy.rules[number + 1 :])]
    return found


def _of_rule(rule: Rule, later: Sequence[Rule]) -> Iterator[str]:
    for condition, stages in USABLE.items():
        wrong = [stage for stage in rule.on if stage not in stages]
        if getattr(rule, condition) not in ((), None) and wrong:
            yield f"`{condition}` means nothing on {' and '.join(wrong)}, only on {' and '.join(stages)}"
    yield from _missing(rule)
    for stage in rule.on:
        if rule.effect == "allow" and not any(other.effect == "deny" and stage in other.on for other in later):
            yield f"it allows on {stage} what no rule after it denies, so it does nothing: a deny must follow"
    for stage in rule.on:
        try:
            CompiledRule("", rule, stage)
        except InvalidArgument as error:
            yield error.message
            break


def _missing(rule: Rule) -> Iterator[str]:
    if not rule.functions and ("offer" in rule.on or "call" in rule.on):
        yield "say which `functions` it is about; * is each"
    searches = bool(rule.keywords or rule.patterns)
    if "output" in rule.on and rule.effect == "deny" and not searches:
        yield "a deny on output needs `keywords` or `patterns`: it looks for something in the answer"
    if "output" in rule.on and rule.effect == "allow" and searches:
        yield "an allow on output has no `keywords` or `patterns`: what comes of an answer is not known when it begins"
    for argument in rule.arguments:
        if argument.values is None and not argument.patterns and argument.least is None and argument.most is None:
            yield f"arguments, {argument.path!r}: say `values`, `patterns`, `least` or `most`"


def _converted(given: Json) -> tuple[Policy, list[str]]:
    """The rules that have the form of one, and what is wrong with the others."""
    if not isinstance(given, dict) or not isinstance(given.get("rules", []), list):
        return Policy(), ['it must be an object such as {"rules": [{"id": "no-code-names", "effect": "deny", …}]}']
    found = [f"there is no member {name!r}; a policy has `rules`" for name in given if name != "rules"]
    raw = given.get("rules", [])
    if len(raw) > MAX_RULES:
        found.append(f"it has {len(raw)} rules; at most {MAX_RULES} are taken")
    rules: list[Rule] = []
    for number, one in enumerate(raw[:MAX_RULES]):
        try:
            rules.append(msgspec.convert(one, Rule))
        except msgspec.ValidationError as error:
            found.append(f"rules[{number}]: {error}")
    return Policy(rules=tuple(rules)), found


def _times(policy: Policy) -> Counter[str]:
    return Counter(rule.id for rule in policy.rules)


def _unusable(found: list[str]) -> InvalidArgument:
    return InvalidArgument(f"the policy is not usable: {'; '.join(found)}", details={"problems": found})
