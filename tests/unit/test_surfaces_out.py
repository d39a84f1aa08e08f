"""The canonical answer as OpenAI's response and Anthropic's message: order of the events, ids, reasons, usage, failures."""

import json
from typing import Any

import pytest

from ports.errors import Internal, Unavailable
from stack_b.http.surfaces.messages_in import messages
from stack_b.http.surfaces.responses_in import responses
from stack_b.http.surfaces.wire import Wire
from stack_b.limits import Limits
from stack_b.replay import chunks_of

RECEIPT: Any = {
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        # Some backends count in several dialects at once; what was settled is what is told.
        "input_tokens": 999,
        "output_tokens": 999,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "latency_ms": 7,
        "gateway_ms": 0.5,
        "cost_nanousd": 50,
        "estimated": False,
    },
    "policy_outcome": {"decision": "allowed", "reasons": []},
    "route": {"backend": "up"},
    "correlation_id": "cor_1",
    "tenant_id": "tnt_acme",
}
TOOL_CALL = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def answer(finish: str = "stop", *, choice: Any = None, **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "hi", **message}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": finish, **(choice or {})}],
        **RECEIPT,
    }


def response_wire() -> Wire:
    return responses({"model": "m", "input": "hello", "metadata": {"ours": "alone"}}, Limits())[1]


def message_wire() -> Wire:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stop_sequences": ["END"]}
    return messages(body, Limits())[1]


def streamed(wire: Wire, reply: dict[str, Any]) -> list[Any]:
    raw = b"".join(wire.chunk(chunk) for chunk in chunks_of(reply, include_usage=False)) + wire.end()
    return events_in(raw)


def events_in(raw: bytes) -> list[Any]:
    found = []
    for frame in raw.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def test_the_events_of_a_response_come_in_their_order_and_end_in_the_whole() -> None:
    reply = answer("tool_calls", tool_calls=[TOOL_CALL])
    events = streamed(response_wire(), reply)

    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(13))
    assert {event.get("item_id") for event in events} == {None, "msg_7_0", "fc_7_1"}
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    assert events[2]["item"]["content"] == []
    assert events[8]["item"]["arguments"] == ""
    assert events[-1]["response"] == response_wire().whole(reply)


def test_a_response_repeats_its_request_and_carries_the_receipt() -> None:
    whole = response_wire().whole(answer())

    assert whole["id"] == "resp_7"
    assert whole["metadata"] == {"ours": "alone"}
    assert whole["store"] is False
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 4
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == 3
    assert (whole["usage"]["input_tokens"], whole["usage"]["total_tokens"]) == (10, 30)
    assert (whole["usage"]["cost_nanousd"], whole["usage"]["estimated"]) == (50, False)
    assert (whole["route"], whole["correlation_id"]) == ({"backend": "up"}, "cor_1")


@pytest.mark.parametrize(
    ("finish", "status", "reason", "stop"),
    [
        ("stop", "completed", None, "end_turn"),
        ("tool_calls", "completed", None, "tool_use"),
        ("function_call", "completed", None, "tool_use"),
        ("length", "incomplete", "max_output_tokens", "max_tokens"),
        ("content_filter", "incomplete", "content_filter", "refusal"),
        ("something_new", "completed", None, "end_turn"),
    ],
)
def test_each_finish_reason_is_said_in_each_dialect(finish: str, status: str, reason: str | None, stop: str) -> None:
    reply = answer(finish)
    whole, last = response_wire().whole(reply), streamed(response_wire(), reply)[-1]
    message, delta = message_wire().whole(reply), streamed(message_wire(), reply)[-2]

    assert whole["status"] == status
    assert (whole["incomplete_details"] or {}).get("reason") == reason
    assert last["type"] == f"response.{status}"
    assert last["response"] == whole
    assert whole["output"][0]["status"] == status
    assert message["stop_reason"] == delta["delta"]["stop_reason"] == stop


def test_the_events_of_a_message_come_in_their_order() -> None:
    reply = answer("tool_calls", tool_calls=[TOOL_CALL, {**TOOL_CALL, "id": "call_b"}])
    events = streamed(message_wire(), reply)

    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[0]["message"]["id"] == "msg_7"
    assert events[4]["content_block"] == {"type": "tool_use", "id": "call_a", "name": "f", "input": {}}
    assert events[5]["delta"] == {"type": "input_json_delta", "partial_json": '{"a":1}'}
    assert events[-2]["route"] == {"backend": "up"}


def test_a_messages_usage_counts_the_cache_beside_the_input() -> None:
    whole, delta = message_wire().whole(answer()), streamed(message_wire(), answer())[-2]

    assert whole["usage"] == delta["usage"]
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (6, 4)
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    assert whole["usage"]["cost_nanousd"] == 50
    assert (whole["content"], whole["stop_sequence"]) == ([{"type": "text", "text": "hi"}], None)


@pytest.mark.parametrize(("hit", "told"), [("END", ("stop_sequence", "END")), (128_009, ("end_turn", None))])
def test_a_stop_sequence_is_named_where_the_backend_says_which(hit: Any, told: tuple[str, str | None]) -> None:
    whole = message_wire().whole(answer(choice={"stop_reason": hit}))

    assert (whole["stop_reason"], whole["stop_sequence"]) == told


@pytest.mark.parametrize("wrong", ["[1]", "{", "nonsense"])
def test_arguments_that_no_message_can_hold_are_the_backends_failure(wrong: str) -> None:
    reply = answer(tool_calls=[{**TOOL_CALL, "function": {"name": "f", "arguments": wrong}}])
    with pytest.raises(Unavailable) as whole:
        message_wire().whole(reply)
    with pytest.raises(Unavailable):
        streamed(message_wire(), reply)

    assert whole.value.code == "upstream_error"
    assert whole.value.surface["route"] == {"backend": "up"}


def test_no_arguments_are_an_empty_object() -> None:
    reply = answer(tool_calls=[{**TOOL_CALL, "function": {"name": "f", "arguments": ""}}], content=None)

    assert message_wire().whole(reply)["content"] == [{"type": "tool_use", "id": "call_a", "name": "f", "input": {}}]
    assert [event["type"] for event in streamed(message_wire(), reply)][1:3] == [
        "content_block_start",
        "content_block_stop",
    ]


def test_a_broken_response_is_failed_and_an_error() -> None:
    wire = response_wire()
    raw = b"".join(wire.chunk(chunk) for chunk in chunks_of(answer(), include_usage=False)[:1])
    failed, error = events_in(wire.failed(Unavailable("broke off", code="upstream_error"), "cor_9"))

    assert raw
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "upstream_error"
    assert (error["type"], error["code"], error["error"]["correlation_id"]) == ("error", "upstream_error", "cor_9")
    assert error["sequence_number"] == failed["sequence_number"] + 1


def test_a_broken_message_is_an_error_in_anthropics_words() -> None:
    [error] = events_in(message_wire().failed(Unavailable("away"), "cor_9"))

    assert error["error"]["type"] == "overloaded_error"
    assert error["error"]["details"]["error_code"] == "unavailable"
    assert error["request_id"] == "cor_9"


def test_no_surface_tells_what_an_internal_error_says() -> None:
    for wire in (response_wire(), message_wire()):
        assert b"/etc/shadow" not in wire.failed(Internal("secret path /etc/shadow", details={"p": "/etc/shadow"}), "c")


@pytest.mark.parametrize("odd", [7, {"a": 1}, ["x"], True])
def test_what_a_backend_writes_where_a_text_belongs_is_no_text(odd: Any) -> None:
    reply = answer(refusal=odd)

    assert response_wire().whole(reply)["output"][0]["content"] == [
        {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
    ]
    assert message_wire().whole(reply)["stop_reason"] == "end_turn"
    assert streamed(response_wire(), reply)[-1]["type"] == "response.completed"
    assert streamed(message_wire(), reply)[-1]["type"] == "message_stop"
