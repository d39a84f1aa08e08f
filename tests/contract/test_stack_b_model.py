"""The kit over Stack B as a Model port: adapter, HTTP, gateway and demo backend, all but the socket."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.budget import InprocBudget
from adapters.stack_b_model import SPEC, StackBModel, StackBModelConfig
from adapters.system_clock import SystemClock
from conformance.model import ModelContract
from conformance.people import ACME, ACME_BEN
from ports.adapter import Given
from ports.context import AuthContext, Trace
from ports.errors import PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable
from ports.messages import Json
from ports.model import ChatDelta, ChatRequest, Message, ModelPort, ToolOffer
from stack_b.backends.demo import DemoBackend
from stack_b.backends.protocol import ModelCard
from tests.support.stack_b import StackB, stack_b

QUESTION = "What is 17.5 % of 2340?"
CALCULATOR = ToolOffer(
    name="calculator",
    description="calculates",
    parameters={"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
)


class Names:
    """An issuer whose tokens are the names that `tests.support.stack_b` knows. Remembers what it was asked for."""

    def __init__(self) -> None:
        self.minted: list[tuple[str, str, frozenset[str]]] = []

    def mint(self, auth: AuthContext, *, audience: str, scopes: frozenset[str], lifetime: timedelta) -> str:
        assert lifetime <= timedelta(hours=1)
        self.minted.append((auth.tenant, audience, scopes))
        return "colleague" if auth.principal == ACME_BEN.principal else auth.tenant.removeprefix("tnt_")


class Breakable(DemoBackend):
    """The demo backend, counted, and unplugged when asked; it serves one model that ACME may not use."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.calls = 0
        self.broken = False
        self.waiting = 0
        self.let_go = anyio.Event()
        self.let_go.set()

    async def models(self) -> tuple[ModelCard, ...]:
        return (*await super().models(), ModelCard(id="foreign", upstream="foreign"))

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        self._count()
        self.waiting += 1
        try:
            await self.let_go.wait()
        finally:
            self.waiting -= 1
        return await super().chat(model, body, max_tokens)

    def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        self._count()
        return super().stream(model, body, max_tokens)

    def _count(self) -> None:
        if self.broken:
            raise Unavailable("unplugged", code="upstream_error")
        self.calls += 1


class StackBHarness:
    """Satisfies `ModelHarness`."""

    chat_model = "agentos-demo"
    embed_model = "agentos-demo-embed"
    foreign_model = "foreign"
    blocked = None

    def __init__(self, closing: AsyncExitStack) -> None:
        self.closing = closing
        self.backend = Breakable()
        self.issuer = Names()
        self.node: StackB

    @property
    def declared(self) -> Struct:
        return SPEC.capabilities(StackBModelConfig(base_url="http://gateway"))

    async def open(self) -> ModelPort:
        models = (self.chat_model, self.embed_model)
        self.node = await self.closing.enter_async_context(stack_b(self.backend, models=models))
        return StackBModel(self.node.http, self.issuer, SystemClock())

    async def backend_calls(self) -> int:
        return self.backend.calls

    async def break_backend(self) -> None:
        self.backend.broken = True

    async def hold_backend(self) -> None:
        self.backend.let_go = anyio.Event()

    async def release_backend(self) -> None:
        self.backend.let_go.set()

    async def backend_waiting(self) -> int:
        return self.backend.waiting


@pytest.fixture
async def harness() -> AsyncIterator[StackBHarness]:
    async with AsyncExitStack() as closing:
        yield StackBHarness(closing)


class TestStackBModel(ModelContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[StackBHarness]:
        async with AsyncExitStack() as closing:
            yield StackBHarness(closing)


def asking(text: str = "hello", **more: Any) -> ChatRequest:
    return ChatRequest(model="agentos-demo", messages=(Message(role="user", content=text),), **more)


@pytest.mark.anyio
async def test_a_tool_goes_there_and_back(harness: StackBHarness) -> None:
    model = await harness.open()

    first = await model.chat(ACME, asking(QUESTION, tools=(CALCULATOR,)))
    streamed = [delta async for delta in model.stream(ACME, asking(QUESTION, tools=(CALCULATOR,)))]
    result = Message(
        role="tool", content='{"result": "409.5", "exact": true}', tool_call_id=first.message.tool_calls[0].id
    )
    messages = (Message(role="user", content=QUESTION), first.message, result)
    second = await model.chat(ACME, replace(asking(tools=(CALCULATOR,)), messages=messages))

    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls[0].arguments == '{"expression":"17.5 % of 2340"}'
    assert streamed[-1].reply is not None
    assert streamed[-1].reply.message.tool_calls == first.message.tool_calls
    assert "= 409.5" in (second.message.content or "")


@pytest.mark.anyio
async def test_tokens_are_minted_for_the_caller_and_used_again(harness: StackBHarness) -> None:
    model = await harness.open()

    for number in range(3):
        await model.chat(ACME.traced(Trace(correlation_id=f"call-{number}")), asking())

    assert harness.issuer.minted == [("tnt_acme", "stack-b", frozenset({"models:invoke"}))]


@pytest.mark.anyio
async def test_the_callers_correlation_and_trace_go_along(harness: StackBHarness) -> None:
    seen: list[httpx.Request] = []

    async def remember(request: httpx.Request) -> None:
        seen.append(request)

    model = await harness.open()
    harness.node.http.event_hooks["request"] = [remember]
    await model.chat(ACME, asking(step_key="run_1:1"))

    [request] = seen
    assert request.headers["x-correlation-id"] == ACME.trace.correlation_id
    assert request.headers["x-step-key"] == "run_1:1"
    trace_id = ACME.trace.traceparent.split("-")[1]
    assert request.headers["traceparent"].split("-")[1] == trace_id
    assert request.headers["traceparent"] != ACME.trace.traceparent


@pytest.mark.anyio
async def test_budgets_know_the_agent_and_the_session_of_a_run(harness: StackBHarness) -> None:
    model = await harness.open()
    ledger = harness.node.deps.budget
    assert isinstance(ledger, InprocBudget)

    await model.chat(ACME, asking(agent="agt_x", session="a b\né"))
    async for _ in model.stream(ACME, asking(agent="agt_x", step_key="run_1:1")):
        pass

    events = [event for _, event in ledger._books.events.values()]
    assert [(event.agent, event.session) for event in events] == [("agt_x", "a b\né"), ("agt_x", "")]


@pytest.mark.anyio
async def test_a_refusal_is_the_same_error_on_this_side() -> None:
    async with stack_b(limit=600) as node:
        model = StackBModel(node.http, Names(), SystemClock())
        await node.deps.budget.settle(
            ACME, (await node.deps.budget.reserve(ACME, 600, limit=600, lease=timedelta(minutes=1))).id, 600
        )

        with pytest.raises(ResourceExhausted) as spent:
            await model.chat(ACME, asking(max_tokens=10))
        with pytest.raises(PermissionDenied) as not_theirs:
            await model.chat(ACME, replace(asking(), model="other"))
        node.tokens.revoked.add("acme")
        with pytest.raises(Unauthenticated):
            await model.list_models(ACME)

    assert (spent.value.code, spent.value.retryable) == ("budget_exceeded", False)
    assert not_theirs.value.code == "model_not_entitled"


@pytest.mark.anyio
async def test_personal_data_is_redacted_on_the_way(harness: StackBHarness) -> None:
    model = await harness.open()

    outcome = await model.policy_check(ACME, asking("write to ann@example.com"))
    reply = await model.chat(ACME, asking("write to ann@example.com"))

    assert outcome == reply.policy_outcome
    assert reply.policy_outcome.decision == "redacted"
    assert "ann@example.com" not in (reply.message.content or "")


@pytest.mark.anyio
async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    config = StackBModelConfig(base_url="http://127.0.0.1:9")
    async with SPEC.open(config, Given(clock=SystemClock(), ports={"issuer": Names()})) as model:
        with pytest.raises(Unavailable) as refused:
            await model.chat(ACME, asking())

    assert refused.value.code == "unavailable"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, json={"choices": [{"message": {"content": "no receipt"}}]}),
        httpx.Response(500, text="oh"),
    ],
)
async def test_an_answer_that_is_no_gateways_is_unavailable(answer: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda _: answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        model = StackBModel(client, Names(), SystemClock())

        with pytest.raises(Unavailable) as refused:
            await model.chat(ACME, asking())

    assert refused.value.code == "upstream_error"


@pytest.mark.anyio
@pytest.mark.parametrize("status", [502, 503, 504])
async def test_what_stands_before_a_gateway_that_is_away_is_not_taken_for_it(status: int) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="<html>"))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        with pytest.raises(Unavailable) as refused:
            await StackBModel(client, Names(), SystemClock()).chat(ACME, asking())

    assert refused.value.code == "unavailable"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (httpx.ConnectTimeout, "unavailable"),
        (httpx.PoolTimeout, "unavailable"),
        (httpx.ReadTimeout, "upstream_timeout"),
        (httpx.RemoteProtocolError, "unavailable"),
    ],
)
async def test_only_a_gateway_that_was_asked_and_is_silent_took_too_long(
    failure: type[httpx.TransportError], code: str
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise failure("no", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url="http://gateway") as client:
        with pytest.raises(Unavailable) as refused:
            await StackBModel(client, Names(), SystemClock()).chat(ACME, asking())

    assert refused.value.code == code


@pytest.mark.anyio
async def test_a_stream_that_breaks_off_is_no_reply() -> None:
    chunk = 'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=chunk))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        model = StackBModel(client, Names(), SystemClock())
        deltas = model.stream(ACME, asking())

        assert await anext(deltas) == ChatDelta(text="half")
        with pytest.raises(Unavailable):
            await anext(deltas)


@pytest.mark.anyio
async def test_a_failure_in_the_middle_of_a_stream_is_the_gateways_error() -> None:
    frames = (
        'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
        'data: {"error":{"code":"upstream_timeout","message":"too slow","retryable":true,"details":{"a":1}}}\n\n'
    )
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=frames))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        deltas = StackBModel(client, Names(), SystemClock()).stream(ACME, asking())

        await anext(deltas)
        with pytest.raises(Unavailable) as failed:
            await anext(deltas)

    assert (failed.value.code, failed.value.message, failed.value.details) == ("upstream_timeout", "too slow", {"a": 1})
