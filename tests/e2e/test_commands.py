"""Commands as tools of a real worker over PostgreSQL: whatever ends the call ends the command and all that it started.

The commands are those of `tests.support.sample_command`: they would go on for ten minutes, each with a child that ignores
SIGTERM.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from conformance.people import ACME
from ports.agent import AgentSpec
from ports.ids import AgentId, RunId
from ports.run_state import Run, RunStatus, Step
from stack_a.runs.journal import read_steps
from tests.support.command_tools import alive, declared, lines, written
from tests.support.ports import free_ports
from tests.support.real_stacks import MODEL_ID, Provider, RealStacks, real_stacks
from tests.support.scripted_upstream import delta

pytestmark = pytest.mark.anyio

CANCELLED_WITHIN_S: Final = 5.0
"""Promise E8."""

TOOLS: Final = ("stubborn", "tidy", "hasty", "rash", "forgotten", "not_sent", "sent")
AGENT: Final = AgentSpec(id=AgentId("agt_demo"), model=MODEL_ID, instructions="Use the tools.", tools=TOOLS)


class ToolCaller(Provider):
    """A model that calls the tool which the user names, once, and then is done."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go.set()

    def deltas(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return [delta(role="assistant", content=f"heard {last['content']}"), delta("stop")]
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": last["content"], "arguments": "{}"}}
        return [delta(role="assistant", tool_calls=[call]), delta("tool_calls")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


@pytest.fixture
async def stacks(tmp_path: Path, store: Path) -> AsyncIterator[RealStacks]:
    told = declared("", "noted", store)["command"]
    file = written(
        tmp_path / "tools.json",
        declared("stubborn", "stubborn", store, timeout_s=600),
        declared("tidy", "tidy", store, timeout_s=600),
        declared("hasty", "stubborn", store, timeout_s=0.5, effect="idempotent"),
        declared("rash", "stubborn", store, timeout_s=0.5, effect="unsafe"),
        declared("forgotten", "stubborn", store, timeout_s=600, effect="unsafe"),
        declared("not_sent", "wait", store, timeout_s=600, effect="unsafe", reconcile=told),
        declared("sent", "send", store, timeout_s=600, effect="unsafe", reconcile=told),
    )
    environment = {"AGENTOS_TOOLS_FILE": str(file)}
    async with real_stacks(
        tmp_path, free_ports(2), provider=ToolCaller(), agent=AGENT, worker_environment=environment
    ) as made:
        await made.gateway.start()
        await made.worker.start()
        yield made


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: other processes don't tell."""
    with anyio.fail_after(30):
        while not await true():  # noqa: ASYNC110 - what is asked is another process
            await anyio.sleep(0.02)


async def begun(stacks: RealStacks, store: Path, tool: str, **more: Any) -> RunId:
    """A run whose command is at work, and so is the command's child."""
    run_id = await stacks.created(tool, **more)

    async def both_beat() -> bool:
        return len({line.split()[1] for line in lines(store, "beats")}) == 2

    await until(both_beat)
    return run_id


async def ended(stacks: RealStacks, run_id: RunId, status: RunStatus) -> Run:
    async def has_ended() -> bool:
        return (await stacks.run(run_id)).status not in {"queued", "running"}

    await until(has_ended)
    run = await stacks.run(run_id)
    assert run.status == status, run
    return run


async def tool_step(stacks: RealStacks, run_id: RunId) -> Step:
    _, step, *_ = await read_steps(stacks.runs, ACME, run_id)
    return step


async def test_a_command_that_ignores_sigterm_is_dead_and_its_run_cancelled_within_five_seconds(
    stacks: RealStacks, store: Path
) -> None:
    run_id = await begun(stacks, store, "stubborn")

    await stacks.runs.cancel(ACME, run_id, reason="not wanted any more")
    accepted = time.monotonic()
    await ended(stacks, run_id, "cancelled")
    took = time.monotonic() - accepted
    left, beats = alive(store), lines(store, "beats")

    assert left == []
    assert took <= CANCELLED_WITHIN_S
    # Once more, when some time has passed: nobody wrote after the end.
    assert (await tool_step(stacks, run_id)).status == "unknown"
    assert lines(store, "beats") == beats


async def test_a_command_that_ends_on_sigterm_is_given_the_time_to_tidy_up(stacks: RealStacks, store: Path) -> None:
    run_id = await begun(stacks, store, "tidy")

    await stacks.runs.cancel(ACME, run_id, reason="not wanted any more")
    await ended(stacks, run_id, "cancelled")

    assert [line.split()[0] for line in lines(store, "tidied")] == [f"{run_id}:2"]
    assert alive(store) == []


async def test_the_deadline_of_a_run_ends_its_command(stacks: RealStacks, store: Path) -> None:
    run_id = await begun(stacks, store, "stubborn", deadline=timedelta(seconds=4))

    run = await ended(stacks, run_id, "failed")

    assert run.error is not None
    assert run.error.code == "run_timeout"
    assert alive(store) == []


async def test_the_timeout_of_a_step_ends_its_command_and_the_model_hears_of_it(
    stacks: RealStacks, store: Path
) -> None:
    run_id = await stacks.created("hasty")

    run = await ended(stacks, run_id, "succeeded")
    step = await tool_step(stacks, run_id)

    assert step.error is not None
    assert step.error.code == "tool_timeout"
    assert "took longer than 0.5 s" in run.output["text"]
    assert alive(store) == []


async def test_an_unsafe_command_that_took_too_long_may_have_acted_and_waits_for_an_operator(
    stacks: RealStacks, store: Path
) -> None:
    run_id = await stacks.created("rash")

    await ended(stacks, run_id, "needs_operator")
    step = await tool_step(stacks, run_id)

    assert (step.status, alive(store)) == ("unknown", [])


@pytest.mark.parametrize(
    ("tool", "status", "effects"),
    [("forgotten", "needs_operator", 0), ("not_sent", "needs_operator", 0), ("sent", "succeeded", 1)],
)
async def test_an_unsafe_command_whose_worker_is_killed_dies_with_it_and_is_never_run_again(
    stacks: RealStacks, store: Path, tool: str, status: RunStatus, effects: int
) -> None:
    run_id = await begun(stacks, store, tool)

    await stacks.worker.kill()

    async def nobody_is_left() -> bool:
        return alive(store) == []

    await until(nobody_is_left)
    began = lines(store, "began")
    await stacks.let_leases_lapse()
    await stacks.worker.start()
    await ended(stacks, run_id, status)
    step = await tool_step(stacks, run_id)

    assert (step.status, step.output) == (("completed", {"kept": True}) if effects else ("unknown", None))
    assert lines(store, "began") == began
    assert len(began) == 1
    assert len(lines(store, "effects")) == effects
