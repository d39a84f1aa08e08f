"""Replaying a run: what was decided is found again, and a change of what it was decided from is found at its step."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from conformance.strategies import json_values, texts
from ports.agent import AgentLimits
from ports.ids import RunId
from ports.messages import Fault, Json
from ports.run_state import Origin, Run, RunStatus, Step, StepIntent
from ports.tool import ToolSpec
from stack_a.runs.plan import CallModel, CallTools, Finish, next_action
from stack_a.runs.replay import Replayed, replay
from tests.unit.test_run_plan import AGENT, NOW, RUN, TOOLS

FAULT: Final = Fault(code="tool_failed", message="no")
LONG: Final = replace(AGENT, limits=AgentLimits(max_steps=20))
CANCELLED: Final = replace(RUN, status="cancelled")


class Turn(Struct, frozen=True, kw_only=True):
    """What a model answers: text, and the tools it wants, each with its arguments and what the call comes to."""

    text: str | None = None
    calls: tuple[tuple[str, str, Json], ...] = ()


class Story(Struct, frozen=True, kw_only=True):
    run: Run
    journal: tuple[Step, ...]

    def replay(self, tools: dict[str, ToolSpec] | None = None) -> Replayed:
        return replay(self.run, LONG, TOOLS if tools is None else tools, self.journal)

    def with_step(self, n: int, change: Callable[[Step], Step]) -> "Story":
        return replace(self, journal=tuple(change(step) if step.n == n else step for step in self.journal))

    def without_step(self, n: int) -> "Story":
        return replace(self, journal=tuple(step for step in self.journal if step.n != n))


def step_of(intent: StepIntent, output: Json, error: Fault | None = None) -> Step:
    return Step(
        n=intent.n, kind=intent.kind, name=intent.name, effect=intent.effect, status="failed" if error else "completed",
        input=intent.input, input_digest=intent.input_digest, epoch=1, started_at=NOW, finished_at=NOW,
        output=None if error else output, error=error,
    )  # fmt: skip


def told(*turns: Turn, run: Run = RUN) -> Story:
    """The run as the engine would have written it, with a model that answers `turns` and then `done`."""
    journal: list[Step] = []
    answers = iter((*turns, Turn(text="done")))
    latest = Turn()
    while True:
        match next_action(run, LONG, TOOLS, journal):
            case CallModel(intent=intent):
                latest = next(answers)
                wanted = [
                    {"id": f"c{i}", "name": name, "arguments": arguments}
                    for i, (name, arguments, _) in enumerate(latest.calls)
                ]
                journal.append(step_of(intent, {"text": latest.text, "tool_calls": wanted}))
            case CallTools(calls=calls):
                for call, (_, _, output) in zip(calls, latest.calls, strict=True):
                    error = call.refusal or (FAULT if output == "fail" else None)
                    journal.append(step_of(call.intent, output, error))
            case Finish(status=status, output=output, error=error):
                ended = replace(run, status=status, output=output, error=error)
                return Story(run=ended, journal=tuple(journal))
            case other:
                raise AssertionError(other)


ADDING: Final = told(
    Turn(calls=(("add", '{"a":1}', {"sum": 2}), ("nope", "{}", None))), Turn(calls=(("send", "{}", 1),))
)
"""Steps: 1 model, 2 add, 3 nope (refused), 4 model, 5 send, 6 model."""

CALLS: Final = st.lists(
    st.tuples(
        st.sampled_from(["add", "send", "other", "nope"]),
        st.sampled_from(["{}", '{"a":1}', "{", ""]),
        json_values() | st.just("fail"),
    ),
    min_size=1,
    max_size=3,
)
TURNS: Final = st.lists(st.builds(Turn, text=st.none() | texts(), calls=CALLS.map(tuple)), max_size=4)
STORIES: Final = TURNS.map(lambda turns: told(*turns))


class TestEqual:
    def test_a_run_that_ended_by_itself_replays_whole(self) -> None:
        assert ADDING.run.status == "succeeded"
        assert ADDING.replay() == Replayed(decisions=7, complete=True)

    @given(STORIES)
    def test_any_run_replays_as_it_was_told(self, story: Story) -> None:
        assert story.replay() == Replayed(decisions=len(story.journal) + 1, complete=True)

    @given(STORIES, st.data())
    def test_any_beginning_of_a_run_under_way_replays(self, story: Story, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, len(story.journal)))
        begun = Story(run=RUN, journal=story.journal[:length])

        assert begun.replay() == Replayed(decisions=length, complete=False)

    @given(STORIES)
    def test_what_a_journal_says_does_not_depend_on_how_it_was_stored(self, story: Story) -> None:
        stored = msgspec.json.decode(msgspec.json.encode(story), type=Story)

        assert stored.replay().divergence is None

    @given(TURNS, st.data())
    def test_a_fork_replays_what_it_decided_itself(self, turns: list[Turn], data: st.DataObject) -> None:
        origin, fork_id = told(*turns), RunId("run_" + "f" * 32)
        at = data.draw(st.integers(0, len(origin.journal)))
        # The same story, told by a run whose requests have other keys.
        fork = told(*turns, run=replace(RUN, id=fork_id, forked_from=Origin(run_id=RUN.id, step=at)))
        journal = (*origin.journal[:at], *fork.journal[at:])

        replayed = replay(fork.run, LONG, TOOLS, journal)
        begun = replay(replace(fork.run, status="queued"), LONG, TOOLS, journal[:at])

        assert replayed == Replayed(decisions=len(journal) - at + 1, complete=True)
        assert begun == Replayed(decisions=0, complete=False)

    def test_a_forks_own_decisions_rest_on_what_it_took_over(self) -> None:
        turns = (Turn(calls=(("add", "{}", 1),)), Turn(calls=(("add", "{}", 2),)))
        fork = told(*turns, run=replace(RUN, forked_from=Origin(run_id=RUN.id, step=2)))

        forged = fork.with_step(2, lambda step: replace(step, output=7))

        assert where(fork.replay()) == "nowhere"
        assert (where(forged.replay()), forged.replay().decisions) == (3, 0)

    @pytest.mark.parametrize("status", ["started", "unknown", "planned"])
    @pytest.mark.parametrize("n", [1, 2, 6])
    def test_a_run_that_was_cancelled_or_waits_stops_at_the_call_without_a_result(self, status: str, n: int) -> None:
        stopped = [step for step in ADDING.journal if step.n <= max(n, 3 if n == 2 else n)]
        journal = [replace(step, status=status) if step.n == n else step for step in stopped]

        for run in (CANCELLED, replace(RUN, status="needs_operator")):
            assert replay(run, LONG, TOOLS, journal) == Replayed(decisions=len(journal), complete=False)

    @pytest.mark.parametrize("code", ["run_timeout", "poison", "internal"])
    def test_an_end_from_outside_may_come_anywhere(self, code: str) -> None:
        run = replace(RUN, status="failed", error=Fault(code=code, message="outside"), recoveries=9)

        for length in range(len(ADDING.journal) + 1):
            assert replay(run, LONG, TOOLS, ADDING.journal[:length]).divergence is None

    def test_a_run_that_a_failed_model_call_ended_replays_whole(self) -> None:
        fault = Fault(code="internal", message="broken")
        journal = (*ADDING.journal[:3], replace(ADDING.journal[3], status="failed", output=None, error=fault))
        run = replace(RUN, status="failed", error=fault)

        assert replay(run, LONG, TOOLS, journal) == Replayed(decisions=5, complete=True)

    def test_a_run_that_was_too_long_replays_whole(self) -> None:
        story = told(*[Turn(calls=(("add", "{}", 1),))] * 11)

        assert story.run.error is not None
        assert story.run.error.code == "max_steps_exceeded"
        assert story.replay().complete


def where(replayed: Replayed) -> int | str | None:
    return "nowhere" if replayed.divergence is None else replayed.divergence.step


class TestDivergent:
    @given(STORIES, st.data())
    def test_another_digest_or_name_or_kind_is_found_at_its_step(self, story: Story, data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(story.journal)))
        other = data.draw(st.sampled_from(("input_digest", "name", "kind")))
        value = {"input_digest": "0" * 64, "name": "else", "kind": "other"}[other]

        changed = story.with_step(n, lambda step: replace(step, **{other: value}))

        replayed = changed.replay()
        assert (where(replayed), replayed.decisions) == (n, n - 1)

    @given(STORIES.filter(lambda story: len(story.journal) > 1), st.data())
    def test_another_result_is_found_at_the_next_call_of_the_model(self, story: Story, data: st.DataObject) -> None:
        tools = [step.n for step in story.journal if step.kind == "tool"]
        n = data.draw(st.sampled_from(tools))
        following = next(step.n for step in story.journal if step.n > n and step.kind == "model")

        changed = story.with_step(n, lambda step: replace(step, status="completed", error=None, output=["forged"]))

        assert where(changed.replay()) == following

    @given(STORIES.filter(lambda story: len(story.journal) > 1), st.data())
    def test_other_words_of_the_model_are_found_where_they_are_next_used(
        self, story: Story, data: st.DataObject
    ) -> None:
        models = [step.n for step in story.journal if step.kind == "model"]
        n = data.draw(st.sampled_from(models))
        following = next((m for m in models if m > n), None)

        changed = story.with_step(n, lambda step: replace(step, output={**step.output, "text": "forged"}))

        assert where(changed.replay()) == following

    @given(STORIES.filter(lambda story: len(story.journal) > 1), st.data())
    def test_a_missing_step_is_found_at_its_place(self, story: Story, data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(story.journal)))

        replayed = story.without_step(n).replay()

        assert where(replayed) == n
        assert replayed.divergence is not None
        assert replayed.divergence.recorded is None

    @given(STORIES)
    def test_a_step_too_many_is_found(self, story: Story) -> None:
        last = story.journal[-1]
        more = replace(story, journal=(*story.journal, replace(last, n=last.n + 1)))

        assert where(more.replay()) == last.n + 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"status": "failed", "output": None, "error": Fault(code="max_steps_exceeded", message="")},
            {"output": {"text": "other"}},
            {"output": None},
        ],
        ids=["failed", "other words", "no words"],
    )
    def test_another_end_is_found(self, changes: dict[str, Json]) -> None:
        story = replace(ADDING, run=replace(ADDING.run, **changes))

        replayed = story.replay()

        assert (where(replayed), replayed.decisions, replayed.complete) == (None, 6, False)

    @pytest.mark.parametrize("length", [0, 1, 2, 3, 5])
    def test_a_run_that_succeeded_before_its_end_is_found(self, length: int) -> None:
        story = replace(ADDING, journal=ADDING.journal[:length])

        assert where(story.replay()) == length + 1

    @pytest.mark.parametrize("status", ["started", "unknown", "planned", "failed"])
    def test_a_step_after_a_call_without_an_answer_is_found(self, status: str) -> None:
        fault = FAULT if status == "failed" else None
        story = ADDING.with_step(1, lambda step: replace(step, status=status, output=None, error=fault))

        assert where(story.replay()) == 2

    def test_a_success_that_rests_on_an_unknown_outcome_is_found(self) -> None:
        story = replace(ADDING, journal=ADDING.journal[:5]).with_step(5, lambda step: replace(step, status="unknown"))

        assert where(story.replay()) is None

    @pytest.mark.parametrize(
        "output", [None, 7, [], {}, {"text": "x"}, {"tool_calls": []}, {"text": "x", "tool_calls": [{"id": 7}]}]
    )
    @pytest.mark.parametrize("n", [1, 4, 6])
    def test_an_answer_no_model_gave_is_found_at_its_step(self, n: int, output: Json) -> None:
        assert where(ADDING.with_step(n, lambda step: replace(step, output=output)).replay()) == n

    def test_a_tool_that_is_described_otherwise_is_found_at_the_first_request(self) -> None:
        tools = {**TOOLS, "add": replace(TOOLS["add"], description="subtracts")}

        replayed = ADDING.replay(tools)

        assert where(replayed) == 1
        assert replayed.divergence is not None
        assert "descriptions" in replayed.divergence.reason

    def test_what_differs_is_named(self) -> None:
        story = ADDING.with_step(2, lambda step: replace(step, name="subtract"))

        divergence = story.replay().divergence

        assert divergence is not None
        assert (divergence.expected, divergence.recorded) != (None, None)
        assert divergence.expected is not None
        assert divergence.recorded is not None
        assert (divergence.expected.what, divergence.recorded.what) == ("tool add", "tool subtract")


def test_a_run_is_replayed_as_it_was_while_it_ran() -> None:
    statuses: tuple[RunStatus, ...] = ("queued", "running", "waiting", "needs_operator")

    for status in statuses:
        run = replace(RUN, status=status, recoveries=99)
        assert replay(run, LONG, TOOLS, ADDING.journal) == Replayed(decisions=6, complete=False)
