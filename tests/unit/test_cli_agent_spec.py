"""An agent as its author writes it: strict, and each refusal says what would be right."""

import msgspec
import pytest

from deploy.agent_spec import MAX_SPEC_BYTES, MOST, parse_spec, render_spec
from deploy.seed import TOOLS, demo_agent
from ports.agent import AgentLimits, AgentSpec, digest_of
from ports.errors import InvalidArgument
from ports.ids import AgentId
from stack_a.http.wire import MAX_DEADLINE_S
from stack_b.limits import Limits


def spec(**members: object) -> bytes:
    return msgspec.json.encode({"id": "agt_x", "model": "m", **members})


def test_what_is_printed_is_what_is_taken() -> None:
    agent = demo_agent("agentos-demo")

    assert parse_spec(render_spec(agent).encode(), tools=TOOLS) == agent


def test_what_is_left_out_has_its_default() -> None:
    assert parse_spec(spec(), tools=TOOLS) == AgentSpec(id=AgentId("agt_x"), model="m")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"id": "agt_x", "id": "agt_y", "model": "m"}', "id"),
        (b"[]", "Expected `object`"),
        (b'{"model": "m"}', "missing required field `id`"),
        (b'{"id": "agt_x"}', "missing required field `model`"),
        (spec(tool=["calculator"]), "`tool`; an agent has id, description, instructions, model, tools, limits, agents"),
        (
            spec(limits={"steps": 3}),
            "its limits max_steps, deadline_s, max_parallel_tools, max_completion_tokens, max_cost_nanousd, max_depth",
        ),
        (spec(limits={"max_steps": "3"}), "Expected `int`, got `str` - at `$.limits.max_steps`"),
        (spec(id="x"), "$.id: 'x' can't name an agent: write agt_"),
        (spec(model=" "), "$.model: name a model"),
        (spec(tools=["calculator", "hammer"]), "$.tools: there is no tool 'hammer'; there are calculator, clock"),
        (spec(tools=["clock", "clock"]), "$.tools: a tool is named twice"),
        (spec(limits={"max_steps": 0}), "$.limits.max_steps: must be 1 to 50, not 0"),
        (spec(limits={"deadline_s": 86_401}), "$.limits.deadline_s: must be 1 to 86400, not 86401"),
        (spec(limits={"max_cost_nanousd": 0}), "$.limits.max_cost_nanousd: must be 1 to 1000000000000000, not 0"),
        (spec(limits={"max_cost_nanousd": 1.5}), "Expected `int | null`, got `float` - at `$.limits.max_cost_nanousd`"),
        (spec(limits={"max_steps": None}), "Expected `int`, got `null` - at `$.limits.max_steps`"),
        (spec(limits={"max_depth": 6}), "$.limits.max_depth: must be 1 to 5, not 6"),
        (spec(agents=["billing"]), "$.agents: 'billing' can't name an agent: write agt_"),
        (spec(agents=["agt_y", "agt_y"]), "$.agents: an agent is named twice"),
        (b" " * (MAX_SPEC_BYTES + 1), f"at most {MAX_SPEC_BYTES}"),
    ],
)  # fmt: skip
def test_a_spec_that_can_not_work_is_refused_with_what_would_be_right(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_spec(raw, tools=TOOLS)

    assert says in refused.value.message


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_spec(spec(id="x", model="", tools=["hammer"], limits={"max_steps": 99}), tools=TOOLS)

    assert all(path in refused.value.message for path in ("$.id", "$.model", "$.tools", "$.limits.max_steps"))


def test_an_agent_without_a_cost_limit_has_the_digest_it_had_before_there_was_one() -> None:
    before = "sha256:527950bec9d7a7d4c1d669c65bfc687ea5eb806a99eb48add7c8eea660c687cc"
    limited = AgentSpec(id=AgentId("agt_x"), model="m", limits=AgentLimits(max_cost_nanousd=7))

    assert digest_of(AgentSpec(id=AgentId("agt_x"), model="m")) == before
    assert digest_of(limited) != before
    assert digest_of(AgentSpec(id=AgentId("agt_x"), model="m", agents=(AgentId("agt_y"),))) != before


def test_a_name_can_not_mean_a_tool_and_an_agent() -> None:
    with pytest.raises(InvalidArgument, match="'agt_y' is among the tools, too"):
        parse_spec(spec(tools=["agt_y"], agents=["agt_y"]), tools=["agt_y"])


def test_the_caps_are_those_that_are_published() -> None:
    assert MOST.deadline_s == MAX_DEADLINE_S
    assert MOST.max_completion_tokens == Limits().max_tokens
