"""What a run does next: a fold over its journal.

Pure. The same journal gives the same action on every node and in every version of the process, so that resuming after a
crash, replaying, retrying and forking are this one function.

How the journal is read: a model step at `n` that asked for `k` tools is followed by the tool steps `n + 1 … n + k`, in the
order of the requests; the next model step is `n + k + 1`. An agent that is called is one of those tools here, under a step
kind of its own.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct, to_builtins

from ports.agent import AgentSpec
from ports.errors import InvalidArgument
from ports.http import strict_json
from ports.messages import Fault, Json
from ports.model import ChatRequest, Message, ToolOffer, ToolRequest
from ports.run_state import OPEN_STEP, TERMINAL, EffectClass, Run, RunStatus, Step, StepIntent, StepKind, step_key
from ports.tool import ToolSpec
from stack_a.tools.agents import refused
from stack_a.tools.policy import permitted

MODEL_EFFECT: Final[EffectClass] = "idempotent"
"""A model call is repeated under its step key, which the gateway answers from its journal where it keeps one."""

MAX_NAME_CHARS: Final = 128
MAX_RECOVERIES: Final = 5
"""A run that took down its worker this often is poison: it would take down the next one as well."""


class CallModel(Struct, frozen=True, kw_only=True):
    intent: StepIntent
    request: ChatRequest


class PlannedTool(Struct, frozen=True, kw_only=True):
    """One call of a tool, or of an agent as its intent's kind says. `refusal` is set when it must not be made: the journal
    records that instead of a result."""

    intent: StepIntent
    arguments: Json = None
    refusal: Fault | None = None


class CallTools(Struct, frozen=True, kw_only=True):
    calls: tuple[PlannedTool, ...]


class Finish(Struct, frozen=True, kw_only=True):
    status: RunStatus
    output: Json = None
    error: Fault | None = None


class Settle(Struct, frozen=True, kw_only=True):
    """An earlier attempt of an `unsafe` tool left an intent and no result: nobody may repeat it unasked."""

    steps: tuple[Step, ...]


Action: TypeAlias = CallModel | CallTools | Finish | Settle


def next_action(run: Run, agent: AgentSpec, tools: Mapping[str, ToolSpec], journal: Sequence[Step]) -> Action:
    """What to do after `journal`. Steps in it that have no result are planned again, with the same number and key."""
    assert run.status not in TERMINAL, "a finished run has no next action"
    if run.recoveries > MAX_RECOVERIES:
        return _failed("poison", f"the run was taken over {run.recoveries} times and is given up")
    if unsettled := tuple(step for step in journal if step.status == "started" and step.effect == "unsafe"):
        return Settle(steps=unsettled)
    steps = {step.n: step for step in journal}
    messages = list(_opening(run, agent))
    n = 1
    while (step := steps.get(n)) is not None and step.status not in OPEN_STEP:
        if step.status != "completed":
            return Finish(status="failed", error=step.error)
        requests = requested_tools(step)
        if not requests:
            return Finish(status="succeeded", output={"text": step.output["text"]})
        results = [steps.get(n + 1 + i) for i in range(len(requests))]
        open_calls = [
            _planned(run, agent, tools, n + 1 + i, request)
            for i, (request, result) in enumerate(zip(requests, results, strict=True))
            if result is None or result.status in OPEN_STEP
        ]
        if open_calls:
            last = n + len(requests)
            return _too_long(agent) if last > agent.limits.max_steps else CallTools(calls=tuple(open_calls))
        messages.append(Message(role="assistant", content=step.output["text"], tool_calls=requests))
        messages.extend(_answers(requests, results))
        n += len(requests) + 1
    if n > agent.limits.max_steps:
        return _too_long(agent)
    spent, most = sum(step.usage.cost_nanousd for step in journal), agent.limits.max_cost_nanousd
    if most is not None and spent >= most:
        message = (
            f"the run's model calls, and the runs it made, have cost {spent} nano-US-dollars, and its limit is {most}"
        )
        return _failed("max_cost_exceeded", message)
    return _model_call(run, agent, tools, n, tuple(messages), steps=steps)


def requested_tools(step: Step) -> tuple[ToolRequest, ...]:
    """The tool calls that a completed model step asked for."""
    return msgspec.convert(step.output["tool_calls"], tuple[ToolRequest, ...])


def offers_before(steps: Mapping[int, Step], n: int) -> tuple[ToolOffer, ...] | None:
    """What the last model step before `n` was offered; None where the journal does not say."""
    for earlier in range(n - 1, 0, -1):
        step = steps.get(earlier)
        if step is not None and step.kind == "model" and step.input is not None and "offers" in step.input:
            return msgspec.convert(step.input["offers"], tuple[ToolOffer, ...])
    return None


def digest(value: Json | Struct) -> str:
    """Of the canonical JSON: equal for equal requests, whatever process made them."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def _opening(run: Run, agent: AgentSpec) -> Iterator[Message]:
    if agent.instructions:
        yield Message(role="system", content=agent.instructions)
    if run.context:
        yield Message(role="system", content="Context of this run, as JSON: " + _text(run.context))
    yield Message(role="user", content=run.input if isinstance(run.input, str) else _text(run.input))


def _answers(requests: Sequence[ToolRequest], results: Sequence[Step | None]) -> Iterator[Message]:
    for request, result in zip(requests, results, strict=True):
        assert result is not None, "open calls were planned before"
        answer = {"error": result.error} if result.error is not None else result.output
        yield Message(role="tool", tool_call_id=request.id, content=_text(answer))


def _text(value: Json) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _model_call(
    run: Run,
    agent: AgentSpec,
    tools: Mapping[str, ToolSpec],
    n: int,
    messages: tuple[Message, ...],
    *,
    steps: Mapping[int, Step],
) -> CallModel:
    offers = tuple(
        ToolOffer(name=spec.name, description=spec.description, parameters=spec.input_schema)
        for spec in permitted(run, agent, tools)
    )
    offered = offers_before(steps, n + 1)
    if n in steps and offered is not None:
        # Begun before: the same request again, whatever the tools are like by now. Its key belongs to it.
        offers = offered
    request = ChatRequest(
        model=agent.model,
        messages=messages,
        tools=offers,
        max_tokens=agent.limits.max_completion_tokens,
        step_key=step_key(run.id, n),
        agent=run.agent_id,
        session=run.session_id or "",
    )
    intent = StepIntent(
        n=n,
        kind="model",
        name=agent.model,
        effect=MODEL_EFFECT,
        # The messages follow from the journal; their digest proves it, at a fraction of their size. What was offered does
        # not, and is written down wherever it is not what the step before was offered.
        input={
            "model": agent.model,
            "messages": len(messages),
            "tools": [offer.name for offer in offers],
            **({} if offers == offers_before(steps, n) else {"offers": to_builtins(offers)}),
        },
        input_digest=digest(request),
    )
    return CallModel(intent=intent, request=request)


def _planned(run: Run, agent: AgentSpec, tools: Mapping[str, ToolSpec], n: int, request: ToolRequest) -> PlannedTool:
    spec = next((one for one in permitted(run, agent, tools) if one.name == request.name), None)
    name = _shown(request.name)
    kind: StepKind = "agent" if spec is not None and name in agent.agents else "tool"
    refusal: Fault | None = None
    arguments: Json = None
    if spec is None:
        refusal = Fault(code="tool_not_allowed", message=f"this run may not call the tool {name!r}")
    else:
        try:
            arguments = strict_json.parse((request.arguments or "{}").encode("utf-8", "surrogatepass"))
        except InvalidArgument as error:
            refusal = Fault(code="tool_bad_arguments", message=error.message)
        else:
            refusal = refused(run, agent, arguments) if kind == "agent" else None
    intent = StepIntent(
        n=n,
        kind=kind,
        name=name,
        effect=spec.effect if spec is not None and refusal is None else "pure",
        input={"call_id": request.id, "arguments": arguments},
        input_digest=digest({"name": name, "arguments": arguments}),
    )
    return PlannedTool(intent=intent, arguments=arguments, refusal=refusal)


def _shown(name: str) -> str:
    """A tool's name as a model made it up, fit to be stored and shown."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name[:MAX_NAME_CHARS])


def _too_long(agent: AgentSpec) -> Finish:
    return _failed("max_steps_exceeded", f"the run needs more than its {agent.limits.max_steps} steps")


def _failed(code: str, message: str) -> Finish:
    return Finish(status="failed", error=Fault(code=code, message=message))
