"""What a run does next, from its journal alone."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from ports.agent import AgentLimits, AgentSpec
from ports.context import AuthContext
from ports.ids import AgentId, PrincipalId, RunId, TenantId
from ports.messages import Fault, Json, Usage
from ports.run_state import Parent, Run, Step
from ports.tool import ToolSpec
from stack_a.runs.plan import MAX_RECOVERIES, Action, CallModel, CallTools, Finish, PlannedTool, Settle, next_action
from stack_a.tools.agents import function_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = AgentSpec(id=AgentId("agt_a"), instructions="Help.", model="m", tools=("add", "send"))
TOOLS = {
    "add": ToolSpec(name="add", description="adds", input_schema={"type": "object"}, effect="pure"),
    "send": ToolSpec(name="send", description="sends", input_schema={"type": "object"}, effect="unsafe"),
    "other": ToolSpec(name="other", description="not of this agent", input_schema={"type": "object"}, effect="pure"),
}
RUN = Run(
    id=RunId("run_" + "0" * 32),
    requester=AuthContext(tenant=TenantId("tnt_a"), principal=PrincipalId("usr_a"), scopes=frozenset({"tools:invoke"})),
    agent_id=AGENT.id,
    agent_version=1,
    agent_digest="sha256:0",
    status="running",
    input="1 + 1?",
    context={},
    tool_allowlist=None,
    session_id=None,
    created_at=NOW,
    deadline_at=NOW + timedelta(hours=1),
)


def plan(*journal: Step, run: Run = RUN, agent: AgentSpec = AGENT) -> Action:
    return next_action(run, agent, TOOLS, journal)


def model_step(n: int, text: str | None = None, **calls: str) -> Step:
    requests = [{"id": f"call_{n}_{name}", "name": name, "arguments": text} for name, text in calls.items()]
    return done(n, "model", "m", {"text": text, "tool_calls": requests})


def done(n: int, kind: str, name: str, output: Json, *, error: Fault | None = None, effect: str = "pure") -> Step:
    return msgspec.convert(
        {
            "n": n, "kind": kind, "name": name, "effect": effect, "status": "failed" if error else "completed",
            "input": None, "input_digest": "", "epoch": 1, "started_at": NOW, "output": output,
            "error": msgspec.to_builtins(error),
        },
        Step,
    )  # fmt: skip


def calling(action: Action) -> CallModel:
    assert isinstance(action, CallModel)
    return action


def intended(call: CallModel) -> Step:
    """The step of a model call as the journal has it, with no answer."""
    step = done(call.intent.n, "model", call.intent.name, None)
    return replace(step, input=call.intent.input, input_digest=call.intent.input_digest)


def answered(call: CallModel) -> Step:
    return replace(intended(call), output=model_step(call.intent.n, add="{}").output)


def paid(step: Step, cost_nanousd: int) -> Step:
    return replace(step, usage=Usage(cost_nanousd=cost_nanousd))


def started(step: Step) -> Step:
    return replace(step, status="started", output=None)


def test_an_empty_journal_asks_the_model_with_instructions_input_and_permitted_tools() -> None:
    action = plan()

    assert isinstance(action, CallModel)
    assert action.intent.n == 1
    assert [message.role for message in action.request.messages] == ["system", "user"]
    assert [offer.name for offer in action.request.tools] == ["add", "send"]
    assert action.request.step_key == f"{RUN.id}:1"


def test_a_model_call_says_whose_it_is() -> None:
    request = calling(plan(run=replace(RUN, session_id="s-1"))).request

    assert (request.agent, request.session) == (RUN.agent_id, "s-1")
    assert calling(plan()).request.session == ""


def test_an_answer_without_tool_calls_finishes_the_run() -> None:
    action = plan(model_step(1, "two"))

    assert action == Finish(status="succeeded", output={"text": "two"})


def test_tool_calls_of_one_turn_are_planned_together_with_steps_in_their_order() -> None:
    action = plan(model_step(1, add='{"a":1}', send="{}"))

    assert isinstance(action, CallTools)
    assert [(call.intent.n, call.intent.name) for call in action.calls] == [(2, "add"), (3, "send")]
    assert action.calls[0].arguments == {"a": 1}


def test_only_the_calls_without_a_result_are_planned_again() -> None:
    action = plan(model_step(1, add="{}", send="{}"), done(3, "tool", "send", {}))

    assert isinstance(action, CallTools)
    assert [call.intent.n for call in action.calls] == [2]


def test_results_go_back_to_the_model_under_the_ids_of_their_calls() -> None:
    action = plan(model_step(1, add="{}"), done(2, "tool", "add", {"sum": 2}))

    assert isinstance(action, CallModel)
    assert action.intent.n == 3
    assistant, answer = action.request.messages[-2:]
    assert assistant.tool_calls[0].id == answer.tool_call_id == "call_1_add"
    assert answer.content == '{"sum":2}'


def test_a_failed_tool_is_told_to_the_model_and_does_not_end_the_run() -> None:
    fault = Fault(code="tool_failed", message="division by zero")

    action = plan(model_step(1, add="{}"), done(2, "tool", "add", None, error=fault))

    assert isinstance(action, CallModel)
    assert "division by zero" in (action.request.messages[-1].content or "")


def test_a_failed_model_call_fails_the_run_with_its_error() -> None:
    fault = Fault(code="budget_exceeded", message="spent")

    assert plan(done(1, "model", "m", None, error=fault)) == Finish(status="failed", error=fault)


@pytest.mark.parametrize(
    ("tool", "arguments", "code"), [("other", "{}", "tool_not_allowed"), ("add", "{", "tool_bad_arguments")]
)
def test_a_call_that_must_not_be_made_is_planned_as_a_refusal(tool: str, arguments: str, code: str) -> None:
    action = plan(model_step(1, **{tool: arguments}))

    assert isinstance(action, CallTools)
    refusal = action.calls[0].refusal
    assert refusal is not None
    assert refusal.code == code


def test_the_requests_allowlist_narrows_the_agents_tools() -> None:
    run = replace(RUN, tool_allowlist=("add",))

    asked = plan(run=run)
    called = plan(model_step(1, send="{}"), run=run)

    assert isinstance(asked, CallModel)
    assert [offer.name for offer in asked.request.tools] == ["add"]
    assert isinstance(called, CallTools)
    assert called.calls[0].refusal is not None


def test_a_tool_that_needs_a_scope_the_requester_lacks_is_neither_offered_nor_called() -> None:
    run = replace(RUN, requester=replace(RUN.requester, scopes=frozenset({"runs:create"})))

    asked = plan(run=run)
    called = plan(model_step(1, add="{}"), run=run)

    assert isinstance(asked, CallModel)
    assert asked.request.tools == ()
    assert isinstance(called, CallTools)
    assert called.calls[0].refusal is not None
    assert called.calls[0].refusal.code == "tool_not_allowed"


@pytest.mark.parametrize(
    "arguments",
    ["[" * 3_000 + "]" * 3_000, '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": "\\ud800"}', "\ud800", '{"a": 1e999}'],
)
def test_arguments_that_json_does_not_allow_are_refused(arguments: str) -> None:
    action = plan(model_step(1, add=arguments))

    assert isinstance(action, CallTools)
    assert action.calls[0].refusal is not None
    assert action.calls[0].refusal.code == "tool_bad_arguments"


@pytest.mark.parametrize("name", ["calc\x00ulator", "\ud800", "x" * 10_000, "a\nb"])
def test_a_tools_name_that_a_model_made_up_is_fit_to_be_stored(name: str) -> None:
    action = plan(model_step(1, **{name: "{}"}))

    assert isinstance(action, CallTools)
    assert action.calls[0].intent.name.isprintable()
    assert len(action.calls[0].intent.name) <= 128
    assert action.calls[0].refusal is not None


def test_an_interrupted_repeatable_call_is_planned_again_under_its_number() -> None:
    first = plan()
    again = plan(started(model_step(1)))

    assert again == first


class TestOffers:
    """What a model step was offered is in the journal: a begun one is asked the same again."""

    CHANGED = TOOLS | {"add": replace(TOOLS["add"], description="adds, and carries")}

    def test_a_begun_model_step_is_asked_what_it_was_asked_although_a_tool_is_described_otherwise_now(self) -> None:
        first = calling(next_action(RUN, AGENT, TOOLS, ()))
        begun = started(intended(first))

        again = calling(next_action(RUN, AGENT, self.CHANGED, (begun,)))
        anew = calling(next_action(RUN, AGENT, self.CHANGED, ()))

        assert again.request == first.request
        assert again.intent.input_digest == begun.input_digest
        assert anew.request != first.request

    def test_a_begun_model_step_is_asked_the_same_although_a_tool_is_gone(self) -> None:
        first = calling(next_action(RUN, AGENT, TOOLS, ()))
        left = {name: spec for name, spec in TOOLS.items() if name != "send"}

        assert calling(next_action(RUN, AGENT, left, (started(intended(first)),))).request == first.request

    def test_the_next_model_step_is_offered_the_tools_as_they_are_by_then(self) -> None:
        first = answered(calling(next_action(RUN, AGENT, TOOLS, ())))

        second = calling(next_action(RUN, AGENT, self.CHANGED, (first, done(2, "tool", "add", {}))))

        assert second.request.tools[0].description == "adds, and carries"
        assert second.intent.input["offers"][0]["description"] == "adds, and carries"
        begun = (first, done(2, "tool", "add", {}), started(intended(second)))
        assert calling(next_action(RUN, AGENT, TOOLS, begun)).request == second.request

    def test_offers_are_written_down_where_they_change_and_found_from_every_step(self) -> None:
        first = answered(calling(next_action(RUN, AGENT, TOOLS, ())))
        journal = (first, done(2, "tool", "add", {}))

        second = calling(next_action(RUN, AGENT, TOOLS, journal))
        again = calling(next_action(RUN, AGENT, self.CHANGED, (*journal, started(intended(second)))))

        assert "offers" in first.input
        assert "offers" not in second.intent.input
        assert again.request == second.request

    def test_a_journal_from_before_offers_were_written_down_is_gone_on_with(self) -> None:
        begun = started(model_step(1))

        assert calling(plan(begun)).request == calling(plan()).request


def test_an_interrupted_unsafe_call_is_settled_never_repeated() -> None:
    interrupted = started(done(2, "tool", "send", None, effect="unsafe"))

    action = plan(model_step(1, send="{}"), interrupted)

    assert action == Settle(steps=(interrupted,))


def test_the_step_limit_ends_the_run_before_the_step_beyond_it() -> None:
    agent = replace(AGENT, limits=AgentLimits(max_steps=2))

    within = plan(model_step(1, add="{}"), agent=agent)
    model_beyond = plan(model_step(1, add="{}"), done(2, "tool", "add", {}), agent=agent)
    tools_beyond = plan(model_step(1, add="{}", send="{}"), agent=agent)

    assert isinstance(within, CallTools)
    for action in (model_beyond, tools_beyond):
        assert isinstance(action, Finish)
        assert action.error is not None
        assert action.error.code == "max_steps_exceeded"


def test_the_cost_limit_ends_the_run_before_another_model_call() -> None:
    journal = (paid(model_step(1, add="{}"), 70), done(2, "tool", "add", {}), paid(model_step(3, add="{}"), 30))

    def after(*steps: Step, most: int | None) -> Action:
        return plan(*steps, agent=replace(AGENT, limits=AgentLimits(max_cost_nanousd=most)))

    tool = done(4, "tool", "add", {})
    assert isinstance(after(*journal, tool, most=None), CallModel)
    assert isinstance(after(*journal, tool, most=101), CallModel)
    assert isinstance(after(*journal, most=100), CallTools)
    beyond = after(*journal, tool, most=100)
    assert isinstance(beyond, Finish)
    assert beyond.error is not None
    assert (beyond.status, beyond.error.code) == ("failed", "max_cost_exceeded")
    assert "100 nano-US-dollars" in beyond.error.message


def test_an_answer_that_went_beyond_the_cost_limit_is_an_answer() -> None:
    action = plan(paid(model_step(1, "2"), 500), agent=replace(AGENT, limits=AgentLimits(max_cost_nanousd=100)))

    assert action == Finish(status="succeeded", output={"text": "2"})


def test_a_run_that_kept_losing_its_worker_is_given_up_as_poison() -> None:
    action = plan(run=replace(RUN, recoveries=MAX_RECOVERIES + 1))

    assert isinstance(action, Finish)
    assert action.error is not None
    assert action.error.code == "poison"


def test_equal_journals_give_equal_actions_and_digests() -> None:
    journal = (model_step(1, add='{"a":1}'), done(2, "tool", "add", {"sum": 2}))

    first, second = plan(*journal), plan(*msgspec.json.decode(msgspec.json.encode(journal), type=tuple[Step, ...]))

    assert first == second


def test_a_call_that_an_operator_wants_again_is_planned_under_its_number() -> None:
    asked = replace(done(2, "tool", "send", None, effect="unsafe"), status="planned")

    action = plan(model_step(1, send="{}"), asked)

    assert isinstance(action, CallTools)
    assert [(call.intent.n, call.intent.name) for call in action.calls] == [(2, "send")]


HELPER = AgentSpec(id=AgentId("agt_b"), description="knows better", model="m")
LEADER = replace(AGENT, agents=(HELPER.id, AgentId("agt_gone")))
TRUSTED = replace(RUN, requester=replace(RUN.requester, scopes=frozenset({"tools:invoke", "runs:create"})))
WITH_HELPER = {**TOOLS, HELPER.id: function_of(HELPER)}


def lead(*journal: Step, run: Run = TRUSTED, agent: AgentSpec = LEADER) -> Action:
    return next_action(run, agent, WITH_HELPER, journal)


def calls_of(action: Action) -> tuple[PlannedTool, ...]:
    assert isinstance(action, CallTools)
    return action.calls


def at_depth(depth: int) -> Run:
    return replace(TRUSTED, parent=Parent(run_id=RUN.id, step=2, depth=depth))


def test_agents_that_are_there_are_offered_after_the_tools() -> None:
    offers = calling(lead()).request.tools

    assert [offer.name for offer in offers] == ["add", "send", HELPER.id]
    assert (offers[-1].description, offers[-1].parameters["required"]) == ("knows better", ["input"])


def test_a_call_of_an_agent_is_a_step_of_its_own_kind_beside_the_tools() -> None:
    calls = calls_of(lead(done(1, "model", "m", requesting(add="{}", agt_b='{"input":7}'))))

    assert [(call.intent.n, call.intent.kind, call.intent.effect, call.refusal) for call in calls] == [
        (2, "tool", "pure", None), (3, "agent", "idempotent", None)
    ]  # fmt: skip
    assert calls[1].arguments == {"input": 7}


def requesting(**calls: str) -> Json:
    return {
        "text": None,
        "tool_calls": [{"id": f"call_{name}", "name": name, "arguments": text} for name, text in calls.items()],
    }


def handing_on(arguments: str = '{"input":1}', *, run: Run = TRUSTED, agent: AgentSpec = LEADER) -> PlannedTool:
    [call] = calls_of(lead(done(1, "model", "m", requesting(agt_b=arguments)), run=run, agent=agent))
    return call


@pytest.mark.parametrize("arguments", ["", "[]", "{}", '{"input":1,"more":2}', '"input"', "{"])
def test_an_agent_is_given_an_input_and_nothing_else(arguments: str) -> None:
    refusal = handing_on(arguments).refusal

    assert refusal is not None
    assert refusal.code == "tool_bad_arguments"


@pytest.mark.parametrize(
    ("depth", "limit", "refused"),
    [(4, None, False), (5, None, True), (1, 2, False), (2, 2, True), (5, 9, True)],
)
def test_a_run_that_is_deep_enough_hands_nothing_on(depth: int, limit: int | None, refused: bool) -> None:
    agent = replace(LEADER, limits=AgentLimits(max_depth=limit))

    refusal = handing_on(run=at_depth(depth), agent=agent).refusal

    assert (refusal is not None) == refused
    assert refusal is None or refusal.code == "max_depth_exceeded"


@pytest.mark.parametrize(
    "run",
    [RUN, replace(TRUSTED, tool_allowlist=("add",))],
    ids=["a requester who may not create runs", "an allow-list without it"],
)
def test_an_agent_is_called_where_its_caller_may(run: Run) -> None:
    call = handing_on(run=run)

    assert HELPER.id not in [offer.name for offer in calling(lead(run=run)).request.tools]
    assert call.refusal is not None
    assert call.refusal.code == "tool_not_allowed"


def test_what_a_child_has_cost_counts() -> None:
    limited = replace(LEADER, limits=AgentLimits(max_cost_nanousd=10))
    asked = done(1, "model", "m", requesting(agt_b='{"input":1}'))
    answered_by_agent = paid(done(2, "agent", HELPER.id, {"run_id": "run_x", "output": 1}, effect="idempotent"), 10)

    action = lead(asked, answered_by_agent, agent=limited)

    assert isinstance(action, Finish)
    assert action.error is not None
    assert action.error.code == "max_cost_exceeded"
