"""A backend's chunks → the chunks a client gets."""

from typing import Any

import pytest

from ports.errors import Unavailable
from stack_b.streaming import StreamShaper
from stack_b.usage import content_bytes_of
from tests.support.scripted_upstream import delta, usage

RECEIPT = {"usage": {"total_tokens": 3}, "route": {"backend": "b"}}


def shaped(*chunks: dict[str, Any], include_usage: bool = False) -> list[dict[str, Any]]:
    shaper = StreamShaper("m")
    released = [piece for chunk in chunks for piece in shaper.feed(chunk)]
    shaper.complete()
    return released + shaper.finish(RECEIPT, include_usage=include_usage)


def call(number: int, **members: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": number, **members}])


def test_nothing_is_released_before_there_is_content() -> None:
    shaper = StreamShaper("m")

    assert shaper.feed(delta(role="assistant", content="")) == []
    released = shaper.feed(delta(content="hi"))

    assert [chunk["choices"][0]["delta"] for chunk in released] == [
        {"role": "assistant", "content": ""},
        {"content": "hi"},
    ]


def test_the_first_delta_gets_a_role_if_the_backend_forgot() -> None:
    first, *_ = shaped(delta(content="hi"), delta("stop"))

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "hi"}


def test_id_created_and_model_are_constant() -> None:
    wandering = [
        {**delta(content="a"), "id": "1", "created": 1, "model": "x"},
        {**delta("stop"), "id": "2", "model": "y"},
    ]

    chunks = shaped(*wandering, include_usage=True)

    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {("1", 1, "m")}


def test_the_finish_chunk_waits_for_the_usage_and_carries_the_receipt() -> None:
    shaper = StreamShaper("m")
    shaper.feed(delta(content="a"))

    assert shaper.feed(delta("stop")) == []
    assert shaper.feed({"choices": [], "usage": usage(1, 2)}) == []
    [last] = shaper.finish(RECEIPT, include_usage=False)

    assert shaper.reported == usage(1, 2)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["route"] == {"backend": "b"}


def test_a_usage_chunk_is_sent_only_when_asked() -> None:
    told: dict[str, Any] = {"choices": [], "usage": usage(1, 2)}

    without = shaped(delta(content="a"), delta("stop"), told)
    with_usage = shaped(delta(content="a"), delta("stop"), told, include_usage=True)

    assert all(chunk["choices"] for chunk in without)
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"] == RECEIPT["usage"]


def test_tool_calls_are_released_whole_before_the_finish_chunk() -> None:
    chunks = shaped(
        delta(role="assistant", content=None),
        call(0, id="a", type="function", function={"name": "add", "arguments": '{"x"'}),
        call(1, id="b", type="function", function={"name": "sub", "arguments": ""}),
        call(0, function={"arguments": ":1}"}),
        call(1, function={"arguments": "{}"}),
        delta("tool_calls"),
    )

    told = [
        chunk["choices"][0]["delta"]["tool_calls"] for chunk in chunks if "tool_calls" in chunk["choices"][0]["delta"]
    ]
    assert told == [
        [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}},
            {"index": 1, "id": "b", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
        ]
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_text_in_a_finish_chunk_is_not_lost() -> None:
    chunks = shaped(delta(content="a"), delta("stop", content="b"))

    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "ab"


def test_members_we_do_not_know_are_kept() -> None:
    chunk = {**delta(content="a", reasoning_content="hm"), "system_fingerprint": "fp"}

    first, *_ = shaped(chunk, delta("stop"))

    assert first["system_fingerprint"] == "fp"
    assert first["choices"][0]["delta"]["reasoning_content"] == "hm"


def test_each_of_several_choices_has_its_role_and_its_end() -> None:
    chunks = shaped(
        delta(content="a"), delta(content="b", index=1), delta("stop", index=1), delta("length"), {"choices": []}
    )

    ends = [
        (c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in chunks if c["choices"][0]["finish_reason"]
    ]
    assert ends == [(0, "length"), (1, "stop")]
    assert ["route" in chunk for chunk in chunks[-2:]] == [False, True]


@pytest.mark.parametrize("chunks", [[], [delta(content="a")], [delta("stop"), delta(content="b", index=1)]])
def test_an_answer_without_its_end_is_an_error(chunks: list[dict[str, Any]]) -> None:
    shaper = StreamShaper("m")
    for chunk in chunks:
        shaper.feed(chunk)

    with pytest.raises(Unavailable):
        shaper.complete()


def test_everything_the_backend_wrote_is_measured() -> None:
    shaper = StreamShaper("m")

    shaper.feed(delta(role="assistant", content="héllo", refusal="no"))
    shaper.feed(call(0, function={"name": "add", "arguments": "{}"}))

    assert shaper.content_bytes == 6 + 2 + 3 + 2


@pytest.mark.parametrize(
    ("member", "size"),
    [
        ({"function_call": {"name": "add", "arguments": "{}"}}, 5),
        ({"reasoning_details": [{"text": "hm"}, {"text": "mh", "signature": "abc"}]}, 7),
        ({"reasoning_content": "hmm"}, 3),
        ({"audio": {"id": "audio_1", "data": "AAAA", "transcript": "hello"}}, 5),
        ({"role": "assistant", "content": None}, 0),
    ],
)
def test_wherever_a_backend_writes_it_is_measured_streamed_or_not(member: dict[str, Any], size: int) -> None:
    shaper = StreamShaper("m")

    shaper.feed(delta(**member))

    assert shaper.content_bytes == size
    assert content_bytes_of({"choices": [{"message": member}]}) == size
