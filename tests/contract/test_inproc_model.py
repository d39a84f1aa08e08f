"""The kit over the in-process Model port, and what is this adapter's own."""

import pytest

from adapters.inproc.model import InprocModel, InprocModelConfig, scripted
from conformance.model import ModelContract
from conformance.people import ACME, GLOBEX
from ports.errors import Unavailable
from ports.model import ChatRequest, Message, ToolRequest
from tests.support.inproc_model import InprocModelHarness


class TestInprocModel(ModelContract):
    @pytest.fixture
    def harness(self) -> InprocModelHarness:
        return InprocModelHarness()


def asking(text: str, *, max_tokens: int | None = None) -> ChatRequest:
    return ChatRequest(model="echo", messages=(Message(role="user", content=text),), max_tokens=max_tokens)


@pytest.mark.anyio
async def test_a_script_is_said_in_order_and_then_there_is_nothing_more() -> None:
    call = Message(role="assistant", tool_calls=(ToolRequest(id="1", name="add", arguments="{}"),))
    model = InprocModel(InprocModelConfig(), scripted(["first", call]))

    first = await model.chat(ACME, asking("anything"))
    second = await model.chat(ACME, asking("anything"))

    assert (first.message.content, first.finish_reason) == ("first", "stop")
    assert (second.message, second.finish_reason) == (call, "tool_calls")
    with pytest.raises(Unavailable):
        await model.chat(ACME, asking("anything"))


@pytest.mark.anyio
async def test_an_answer_over_the_limit_is_cut_and_says_so() -> None:
    model = InprocModel(InprocModelConfig())

    reply = await model.chat(ACME, asking("to be or not to be", max_tokens=3))

    assert (reply.message.content, reply.finish_reason) == ("to be or", "length")
    assert reply.usage.completion_tokens == 3


@pytest.mark.anyio
async def test_one_tenants_journal_does_not_answer_another() -> None:
    model = InprocModel(InprocModelConfig(), scripted(["for acme", "for globex"]))
    asked = ChatRequest(model="echo", messages=(), step_key="run_1:1")

    replies = [(await model.chat(auth, asked)).message.content for auth in (ACME, GLOBEX, ACME)]

    assert replies == ["for acme", "for globex", "for acme"]
