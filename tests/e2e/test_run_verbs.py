"""Retry, fork and resolve, over HTTP and executed by a worker: what has a result is not done again."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig, Rule
from adapters.inproc.tool import InprocTools, PythonTool
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import EffectClass, Run, RunStatus
from ports.tool import MAX_OUTPUT_BYTES, ToolPort, ToolSpec
from stack_a import worker as worker_module
from stack_a.lease import LEASE
from tests.support.stack_a import StackA, events_of, stack_a

pytestmark = pytest.mark.anyio

ABSENT = "run_" + "0" * 32


class Toolbox:
    """`add` answers; `send` is unsafe, and answers once `open_gate` was called."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.begun = anyio.Event()
        self.gate = anyio.Event()

    def port(self, clock: ManualClock) -> ToolPort:
        return InprocTools([self._tool("add", "pure"), self._tool("send", "unsafe")], clock)

    def _tool(self, name: str, effect: EffectClass) -> PythonTool:
        schema: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
        spec = ToolSpec(name=name, description=name, input_schema=schema, effect=effect, timeout=timedelta(hours=1))

        async def act(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
            self.keys.append(key)
            if name == "send":
                self.begun.set()
                await self.gate.wait()
            return {"by": name}

        return PythonTool(spec=spec, act=act)

    def calls_of(self, run_id: str) -> list[str]:
        return [key.partition(":")[2] for key in self.keys if key.startswith(run_id)]


class Talk:
    """A model that asks for the tools of each turn, then answers. `broken` turns fail."""

    def __init__(self, *turns: tuple[str, ...]) -> None:
        self._turns = turns
        self.asked: list[tuple[str, int]] = []
        self.heard: list[str] = []
        self.broken: set[int] = set()

    def __call__(self, _auth: AuthContext, request: ChatRequest) -> Message:
        turn = sum(message.role == "assistant" for message in request.messages)
        self.asked.append((str(request.step_key), turn))
        self.heard = [str(message.content) for message in request.messages if message.role == "tool"]
        if turn in self.broken:
            raise InvalidArgument("the context is too long", code="context_length_exceeded")
        if turn == len(self._turns):
            return Message(role="assistant", content="done")
        wanted = tuple(ToolRequest(id=f"c{i}", name=name, arguments="{}") for i, name in enumerate(self._turns[turn]))
        return Message(role="assistant", tool_calls=wanted)

    def turns_of(self, run_id: str) -> list[int]:
        return [turn for key, turn in self.asked if key.startswith(run_id)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock) as made:
        yield made


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


def model(rule: Rule) -> InprocModel:
    return InprocModel(InprocModelConfig(chat_models=("m",)), rule)


async def takeover(clock: ManualClock) -> None:
    for _ in range(round((LEASE + worker_module.SWEEP_EVERY * 2).total_seconds())):
        await clock.advance(timedelta(seconds=1))


async def until_status(node: StackA, run_id: str, status: RunStatus) -> Run:
    with anyio.fail_after(5):
        while (run := await node.run_state.load(ACME, cast("Any", run_id))).status != status:
            await anyio.lowlevel.checkpoint()
    return run


async def steps_of(node: StackA, run_id: str) -> list[tuple[int, str]]:
    found = (await node.get(f"/v1/runs/{run_id}/steps")).json()["items"]
    return [(step["n"], step["status"]) for step in found]


async def log_of(node: StackA, run_id: str) -> list[dict[str, Any]]:
    return events_of((await node.get(f"/v1/runs/{run_id}/events")).text)


async def waiting_for_an_operator(node: StackA, talk: Talk, tools: Toolbox, clock: ManualClock) -> str:
    """A run whose worker died while `send` was at work."""
    async with node.worker(model(talk), tools.port(clock)):
        run_id = await node.created()
        with anyio.fail_after(5):
            await tools.begun.wait()
    tools.begun = anyio.Event()
    async with node.worker(model(talk), tools.port(clock)):
        await takeover(clock)
        await until_status(node, run_id, "needs_operator")
    return run_id


class TestRetry:
    async def test_a_failed_run_goes_on_from_where_it_failed(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("add", "nonsense"))
        talk.broken = {1}
        async with node.worker(model(talk), tools.port(clock)):
            failed = await node.ended(await node.created(input="1 + 1?"))
            talk.broken = set()
            answer = await node.verb(failed.id, "retry")
            run = await node.ended(answer.json()["run_id"])

        assert (failed.status, answer.status_code, answer.json()["status"]) == ("failed", 202, "queued")
        assert (run.status, run.output, run.input) == ("succeeded", {"text": "done"}, "1 + 1?")
        assert talk.turns_of(run.id) == [1]
        assert tools.calls_of(run.id) == []
        view = (await node.get(f"/v1/runs/{run.id}")).json()
        assert view["forked_from"] == {"run_id": failed.id, "step": 3}
        assert (await node.get(f"/v1/runs/{failed.id}")).json()["forked_from"] is None
        assert (await log_of(node, run.id))[0]["data"]["forked_from"] == {"run_id": failed.id, "step": 3}

    async def test_a_retry_counts_its_own_usage_only(self, node: StackA, tools: Toolbox, clock: ManualClock) -> None:
        talk = Talk(("add",))
        talk.broken = {1}
        async with node.worker(model(talk), tools.port(clock)):
            failed = await node.ended(await node.created())
            talk.broken = set()
            run = await node.ended((await node.verb(failed.id, "retry")).json()["run_id"])

        own = await node.run_state.steps(ACME, run.id)
        assert failed.usage.total_tokens > 0
        assert [step.usage.total_tokens > 0 for step in own] == [False, False, True]
        assert run.usage == own[-1].usage

    async def test_a_run_that_was_cancelled_before_it_began_begins_anew(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        run_id = await node.created()
        await node.cancel(run_id)

        async with node.worker(model(Talk()), tools.port(clock)):
            run = await node.ended((await node.verb(run_id, "retry")).json()["run_id"])

        assert run.status == "succeeded"

    async def test_repeating_with_the_same_key_gives_the_same_run(self, node: StackA) -> None:
        run_id = await node.created()
        await node.cancel(run_id)

        answers = [await node.verb(run_id, "retry", key="k") for _ in range(2)]

        assert len({answer.json()["run_id"] for answer in answers}) == 1
        assert len((await node.get("/v1/runs")).json()["items"]) == 2

    async def test_a_run_that_has_not_failed_is_not_retried(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        queued = await node.created()
        refused = await node.verb(queued, "retry")
        async with node.worker(model(Talk()), tools.port(clock)):
            succeeded = await node.ended(queued)
        again = await node.verb(succeeded.id, "retry")

        assert [(one.status_code, one.json()["error"]["code"]) for one in (refused, again)] == [(409, "conflict")] * 2

    async def test_a_call_that_may_have_taken_effect_is_not_retried_unasked(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        run_id = await waiting_for_an_operator(node, Talk(("send",)), tools, clock)
        await node.cancel(run_id)

        refused = await node.verb(run_id, "retry")
        asked = await node.verb(run_id, "fork", from_step=1)

        assert (refused.status_code, asked.status_code) == (409, 202)
        assert refused.json()["error"]["details"] == {"from_step": 1}


class TestFork:
    async def test_a_fork_shares_the_steps_before_it_and_repeats_none_of_their_effects(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("add",), ("add", "add"))
        async with node.worker(model(talk), tools.port(clock)):
            first = await node.ended(await node.created())
            answer = await node.verb(first.id, "fork", from_step=4)
            fork = await node.ended(answer.json()["run_id"])

        assert answer.status_code == 202
        assert (fork.status, fork.output, fork.epoch) == ("succeeded", first.output, 1)
        assert talk.turns_of(fork.id) == [2]
        assert tools.calls_of(first.id) == ["2", "4", "5"]
        assert tools.calls_of(fork.id) == ["5"]
        assert await steps_of(node, fork.id) == await steps_of(node, first.id)

    async def test_a_fork_from_nothing_begins_anew(self, node: StackA, tools: Toolbox, clock: ManualClock) -> None:
        async with node.worker(model(Talk(("add",))), tools.port(clock)):
            first = await node.ended(await node.created())
            fork = await node.ended((await node.verb(first.id, "fork", from_step=0)).json()["run_id"])

        assert fork.status == "succeeded"
        assert tools.calls_of(fork.id) == ["2"]

    async def test_a_fork_of_a_whole_run_ends_as_it_did_without_a_call(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("add",))
        async with node.worker(model(talk), tools.port(clock)):
            first = await node.ended(await node.created())
            fork = await node.ended((await node.verb(first.id, "fork", from_step=3)).json()["run_id"])

        assert (fork.status, fork.output, fork.usage.total_tokens) == ("succeeded", first.output, 0)
        assert talk.turns_of(fork.id) == []

    async def test_a_step_without_a_result_can_not_be_forked_after(self, node: StackA) -> None:
        run_id = await node.created()

        refused = await node.verb(run_id, "fork", from_step=1)

        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "it has no steps" in refused.json()["error"]["message"]

    async def test_beyond_the_last_step_it_is_said_how_many_there_are(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        async with node.worker(model(Talk(("add",))), tools.port(clock)):
            run = await node.ended(await node.created())

        refused = (await node.verb(run.id, "fork", from_step=9)).json()["error"]

        assert (refused["code"], refused["details"]) == ("conflict", {"steps": 3, "max_from_step": 3})
        assert "it has 3 steps; 0 (begins anew) to 3 can be chosen" in refused["message"]

    @pytest.mark.parametrize("body", [{}, {"from_step": -1}, {"from_step": "1"}, {"from_step": 1, "more": 1}])
    async def test_a_body_that_is_none_is_refused(self, node: StackA, body: dict[str, Any]) -> None:
        refused = await node.verb(await node.created(), "fork", **body)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_failed")

    async def test_the_same_key_for_another_step_is_refused(self, node: StackA) -> None:
        run_id = await node.created()
        await node.verb(run_id, "fork", key="k", from_step=0)

        refused = await node.verb(run_id, "fork", key="k", from_step=1)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


class TestResolve:
    async def test_done_goes_on_with_the_given_output_and_without_a_call(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("send",))
        run_id = await waiting_for_an_operator(node, talk, tools, clock)

        answer = await node.verb(run_id, "resolve", "eve", step=2, decision="done", output={"sent": "yes"})
        async with node.worker(model(talk), tools.port(clock)):
            run = await node.ended(run_id)

        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert run.status == "succeeded"
        assert tools.calls_of(run_id) == ["2"]
        assert talk.heard == ['{"sent":"yes"}']
        told = [event for event in await log_of(node, run_id) if event["event"] == "step.resolved"]
        assert [event["data"] for event in told] == [{"step": 2, "decision": "done", "output": {"sent": "yes"}}]

    async def test_fail_tells_the_model_the_message(self, node: StackA, tools: Toolbox, clock: ManualClock) -> None:
        talk = Talk(("send",))
        run_id = await waiting_for_an_operator(node, talk, tools, clock)

        await node.verb(run_id, "resolve", "eve", step=2, decision="fail", message="it never arrived")
        async with node.worker(model(talk), tools.port(clock)):
            run = await node.ended(run_id)

        assert run.status == "succeeded"
        assert tools.calls_of(run_id) == ["2"]
        assert "it never arrived" in talk.heard[0]

    async def test_retry_calls_once_more_under_the_same_key(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("send",))
        run_id = await waiting_for_an_operator(node, talk, tools, clock)
        tools.gate.set()

        await node.verb(run_id, "resolve", "eve", step=2, decision="retry")
        planned = await steps_of(node, run_id)
        async with node.worker(model(talk), tools.port(clock)):
            run = await node.ended(run_id)

        assert planned == [(1, "completed"), (2, "planned")]
        assert run.status == "succeeded"
        assert tools.keys == [f"{run_id}:2"] * 2
        assert await steps_of(node, run_id) == [(1, "completed"), (2, "completed"), (3, "completed")]

    async def test_a_repeated_call_that_is_interrupted_waits_for_an_operator_again(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("send",))
        run_id = await waiting_for_an_operator(node, talk, tools, clock)
        await node.verb(run_id, "resolve", "eve", step=2, decision="retry")

        async with node.worker(model(talk), tools.port(clock)):
            with anyio.fail_after(5):
                await tools.begun.wait()
        async with node.worker(model(talk), tools.port(clock)):
            await takeover(clock)
            await until_status(node, run_id, "needs_operator")

        assert tools.keys == [f"{run_id}:2"] * 2
        assert await steps_of(node, run_id) == [(1, "completed"), (2, "unknown")]

    async def test_a_decision_about_another_step_names_the_one_that_waits(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        run_id = await waiting_for_an_operator(node, Talk(("send",)), tools, clock)

        refused = (await node.verb(run_id, "resolve", "eve", step=1, decision="retry")).json()["error"]
        forked = (await node.verb(run_id, "fork", from_step=2)).json()["error"]

        assert (refused["code"], refused["details"]) == ("conflict", {"steps": [2]})
        assert forked["details"] == {"steps": 2, "max_from_step": 1}
        assert "step 2 is unknown" in forked["message"]

    async def test_a_decision_after_the_deadline_still_counts(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        talk = Talk(("send",))
        run_id = await waiting_for_an_operator(node, talk, tools, clock)
        await clock.advance(timedelta(days=1))

        await node.verb(run_id, "resolve", "eve", step=2, decision="done", output=None)
        async with node.worker(model(talk), tools.port(clock)):
            run = await node.ended(run_id)

        assert run.status == "succeeded"

    async def test_repeating_a_decision_with_its_key_changes_nothing(
        self, node: StackA, tools: Toolbox, clock: ManualClock
    ) -> None:
        run_id = await waiting_for_an_operator(node, Talk(("send",)), tools, clock)

        answers = [
            await node.verb(run_id, "resolve", "eve", key="k", step=2, decision="fail", message="no") for _ in range(2)
        ]
        without = await node.verb(run_id, "resolve", "eve", step=2, decision="fail", message="no")

        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["status"] == answers[1].json()["status"] == "queued"
        assert (without.status_code, without.json()["error"]["code"]) == (409, "conflict")

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"step": 0, "decision": "retry"},
            {"step": 2, "decision": "perhaps"},
            {"step": 2, "decision": "done"},
            {"step": 2, "decision": "retry", "output": 1},
            {"step": 2, "decision": "done", "output": 1, "message": "x"},
            {"step": 2, "decision": "fail", "message": "x" * 501},
            {"step": 2, "decision": "done", "output": "x" * MAX_OUTPUT_BYTES},
        ],
        ids=["empty", "step", "decision", "no output", "output of retry", "message of done", "long", "large"],
    )
    async def test_a_decision_that_is_none_is_refused(self, node: StackA, body: dict[str, Any]) -> None:
        refused = await node.verb(await node.created(), "resolve", "eve", **body)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_failed")


class TestDoors:
    @pytest.mark.parametrize(
        ("verb", "body"),
        [("retry", {}), ("fork", {"from_step": 0}), ("resolve", {"step": 1, "decision": "retry"})],
    )
    async def test_another_tenants_run_is_as_absent_as_one_that_never_was(
        self, node: StackA, verb: str, body: dict[str, Any]
    ) -> None:
        run_id = await node.created()

        foreign = await node.verb(run_id, verb, "globex-editor", **body)
        absent = await node.verb(ABSENT, verb, "globex-editor", **body)

        texts = [answer.json()["error"]["message"] for answer in (foreign, absent)]
        assert (foreign.status_code, absent.status_code) == (404, 404)
        assert texts[0].replace(run_id, "…") == texts[1].replace(ABSENT, "…")

    async def test_who_may_start_and_stop_runs_may_not_decide_about_tool_calls(self, node: StackA) -> None:
        refused = await node.verb(await node.created(), "resolve", "acme", step=1, decision="retry")

        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        assert refused.json()["error"]["details"]["required_scope"] == "approvals:decide"

    @pytest.mark.parametrize("verb", ["retry", "fork", "resolve"])
    async def test_every_verb_needs_a_key(self, node: StackA, verb: str) -> None:
        run_id = await node.created()

        refused = await node.http.post(f"/v1/runs/{run_id}:{verb}", headers=node.headers("eve"), json={})

        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "idempotency_key_required")
