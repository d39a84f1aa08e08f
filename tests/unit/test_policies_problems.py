"""What is wrong with a policy is said, all of it, before it is anybody's."""

import json
from typing import Any

import pytest

from ports.errors import InvalidArgument
from ports.policy import MAX_RULES, Policy
from stack_b.configuration import parse_configuration
from stack_b.policies.problems import MAX_BYTES, parse_policy


def told(*rules: Any, **more: Any) -> list[str]:
    try:
        parse_policy(json.dumps({"rules": list(rules), **more}))
    except InvalidArgument as error:
        found: list[str] = error.details["problems"]
        return found
    return []


DENY = {"id": "no", "effect": "deny", "keywords": ["x"]}


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({**DENY, "id": "No"}, "rules[0]: Expected `str` matching regex"),
        ({**DENY, "effect": "forbid"}, "Invalid enum value 'forbid'"),
        ({**DENY, "wrods": []}, "unknown field `wrods`"),
        ({**DENY, "on": []}, "length >= 1"),
        ({**DENY, "on": ["call"]}, "`keywords` means nothing on call, only on input and output"),
        ({**DENY, "max_tokens": -1}, ">= 0"),
        ({**DENY, "on": ["output"], "max_tokens": 1}, "`max_tokens` means nothing on output"),
        ({**DENY, "functions": ["f"]}, "`functions` means nothing on input, only on offer and call"),
        ({"id": "no", "effect": "deny", "on": ["offer"], "functions": ["f"], "arguments": [{"path": "a", "most": 1}]},
         "`arguments` means nothing on offer"),
        ({"id": "no", "effect": "deny", "on": ["call"]}, "say which `functions`"),
        ({"id": "no", "effect": "deny", "on": ["call"], "functions": ["f"], "arguments": [{"path": "a"}]},
         "say `values`, `patterns`, `least` or `most`"),
        ({"id": "no", "effect": "deny", "on": ["call"], "functions": ["f"],
          "arguments": [{"path": "a", "patterns": ["("]}]}, "no pattern of RE2"),
        ({"id": "no", "effect": "deny", "on": ["output"]}, "a deny on output needs `keywords` or `patterns`"),
        ({"id": "no", "effect": "deny", "on": ["output"], "patterns": ["a+"]}, "say how often at most"),
        ({"id": "no", "effect": "deny", "patterns": ["(a)\\1"]}, "no pattern of RE2"),
        ({"id": "yes", "effect": "allow", "models": ["m"]}, "so it does nothing: a deny must follow"),
        ({"id": "yes", "effect": "allow", "on": ["output"], "keywords": ["x"]}, "an allow on output has no `keywords`"),
        ("no rule", "Expected `object`"),
    ],
)  # fmt: skip
def test_a_rule_that_can_not_be_used_or_does_nothing_is_told(rule: Any, problem: str) -> None:
    assert any(problem in one for one in told(rule)), told(rule)


def test_every_problem_is_told_at_once() -> None:
    found = told(DENY, DENY, {**DENY, "id": "B"}, {**DENY, "id": "c", "patterns": ["("]}, version=3)

    assert len(found) == 4
    for problem in ("there is no member 'version'", "2 rules have the id 'no'", "rules[2]", "rule 'c'"):
        assert any(problem in one for one in found)


@pytest.mark.parametrize(
    "raw", ["", "[]", "3", "{", '{"rules": 3}', '{"rules": [null]}', "[" * 100_000, "\x00", '"\ud800"', b'"\xff"']
)
def test_what_is_no_policy_is_told(raw: str | bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_policy(raw)


def test_a_policy_has_so_many_rules_and_bytes_at_most() -> None:
    rules = [{**DENY, "id": f"r{number}"} for number in range(MAX_RULES + 1)]
    assert told(*rules[:-1]) == []
    assert f"it has {MAX_RULES + 1} rules; at most {MAX_RULES} are taken" in told(*rules)
    with pytest.raises(InvalidArgument, match="at most"):
        parse_policy(b" " * (MAX_BYTES + 1))


def test_a_policy_that_says_the_same_has_the_same_version() -> None:
    one = parse_policy(json.dumps({"rules": [DENY]}))
    other = parse_policy(json.dumps({"rules": [dict(reversed(DENY.items()))]}))

    assert one.version == other.version != ""
    assert Policy().version == ""


def test_the_nodes_policies_are_checked_with_their_names() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_configuration(
            json.dumps(
                {"policies": {"house": {"rules": [{**DENY, "patterns": ["("]}]}, "tenant": {"rules": [{**DENY}, DENY]}}}
            )
        )

    problems = refused.value.details["problems"]
    assert len(problems) == 3
    assert problems[0].startswith("policies.house: rule 'no': ")
    assert "policies.tenant: this name is for what tenants say themselves; take another" in problems
