"""docs/policies.md tells the truth: each example is asked of a gateway under its policy, and of the check."""

import json
import re
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from ports.policy import Rule
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard
from stack_b.policies.width import MAX_WIDTH
from tests.support.in_process import in_process
from tests.support.scripted_upstream import ScriptedUpstream, completion
from tests.support.stack_b import stack_b

pytestmark = [pytest.mark.anyio]

Json: TypeAlias = Any  # JSON of a test

PAGE: Final = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
_BLOCK: Final = re.compile(r"```json policy\n(.*?)```\s+```example\n(.*?)```", re.DOTALL)
MODELS: Final = ("echo", "small", "large-1")


def examples() -> list[tuple[Json, Json, str]]:
    """Policy, request and what comes of it."""
    found = []
    for policy, asked in _BLOCK.findall(PAGE):
        lines = asked.strip().splitlines()
        found += [(json.loads(policy)["rules"], json.loads(lines[at]), lines[at + 1]) for at in range(0, len(lines), 2)]
    return found


def test_there_are_examples() -> None:
    assert len(examples()) >= 9
    assert PAGE.count("```json policy") == len(_BLOCK.findall(PAGE))


@pytest.mark.parametrize(("rules", "asked", "expected"), examples())
async def test_an_example_is_true(rules: Json, asked: Json, expected: str) -> None:
    status, *told = expected.split()
    upstream = ScriptedUpstream([completion("fine")])
    cards = tuple(ModelCard(id=model, upstream=model) for model in MODELS)
    backend = OpenAiCompatible(name="up", base_url="http://up/v1", dial_by=in_process(upstream), models=cards)
    body = {"model": "small", **asked}
    async with stack_b(backend, rules=rules) as node:
        answer = await node.post("/v1/chat/completions", body)
        verdict = (await node.post("/v1/policy/check", body)).json()

    assert answer.status_code == int(status)
    if told:
        error = answer.json()["error"]
        assert [error["code"], *error["policy_outcome"]["reasons"]] == told
    assert verdict["refusal"] == (told[0] if told else None)
    assert verdict["policy_outcome"]["reasons"] == told[1:]


def test_every_condition_is_on_the_page_and_its_limits_are_those_of_the_code() -> None:
    for name in Rule.__struct_fields__:
        assert f"`{name}`" in PAGE, name
    assert f"at most {MAX_WIDTH} characters" in PAGE
