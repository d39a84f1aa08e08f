import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.people import ACME
from observability import logs
from ports.errors import Unavailable


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What `configure` sends to stderr; the root logger is as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger(logs.OURS)
    before = (list(root.handlers), root.level, ours.level)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("stack-a")
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_of_json_with_its_fields(written: io.StringIO) -> None:
    logs.logger("runs").info("run.finished", extra={**logs.who(ACME), "run_id": "run_1", "steps": 3})

    [line] = lines(written)
    assert line["event"] == "run.finished"
    assert (line["service"], line["logger"], line["level"]) == ("stack-a", "agentos.runs", "info")
    assert (line["tenant_id"], line["run_id"], line["steps"], line["correlation_id"]) == (
        "tnt_acme",
        "run_1",
        3,
        "corr-acme",
    )


def test_fields_not_on_the_list_are_dropped_and_counted(written: io.StringIO) -> None:
    logs.logger("runs").info(
        "run.finished", extra={"prompt": "canary-7", "arguments": {"x": "canary-7"}, "status": ["canary-7"]}
    )

    [line] = lines(written)
    assert "canary-7" not in written.getvalue()
    assert line["dropped"] == 3


@pytest.mark.parametrize("message", ["the prompt was canary-7", "canary-7", "a.b canary-7", "run.finished\n", 7])
def test_a_message_that_is_no_event_is_not_repeated(written: io.StringIO, message: object) -> None:
    logs.logger("runs").info(message)

    [line] = lines(written)
    assert line["event"] == "log.unnamed"
    assert "canary-7" not in written.getvalue()


def test_what_looks_like_a_secret_is_taken_out_of_a_field(written: io.StringIO) -> None:
    key = "aos_demo_" + "0" * 32 + "_" + "ab" * 32
    for secret in (
        key,
        "Bearer abc.def",
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
        "sk-proj-abcdefghijklmnop",
        "http://u:p@host/",
    ):
        logs.logger("runs").info("run.finished", extra={"reason": f"it was {secret}"})

    for line, secret in zip(lines(written), (key, "abc.def", "eyJzdWIiOiIx", "abcdefghijklmnop", "u:p"), strict=True):
        assert secret not in line["reason"]
        assert "[secret]" in line["reason"]


def test_a_field_is_clipped_and_stays_on_its_line(written: io.StringIO) -> None:
    logs.logger("runs").info("run.finished", extra={"reason": "a\nb" + "c" * 1_000})

    [line] = lines(written)
    assert len(line["reason"]) == 256
    assert "\n" not in line["reason"]


def fail() -> None:
    raise ValueError("canary-7")


def fail_in_our_words() -> None:
    try:
        fail()
    except ValueError as cause:
        raise Unavailable("the store does not answer") from cause


def test_an_exception_is_told_by_type_and_place_and_not_by_its_text(written: io.StringIO) -> None:
    try:
        fail()
    except ValueError:
        logs.logger("http").exception("http.failed", extra={"route": "/v1/runs"})

    [line] = lines(written)
    assert line["error_type"] == "ValueError"
    assert line["stack"][-1].endswith(" fail")
    assert "canary-7" not in written.getvalue()


def test_our_own_errors_are_told_with_their_words_and_the_causes_by_type(written: io.StringIO) -> None:
    try:
        fail_in_our_words()
    except Unavailable:
        logs.logger("http").exception("http.failed")

    [line] = lines(written)
    assert (line["code"], line["error"], line["causes"]) == ("unavailable", "the store does not answer", ["ValueError"])
    assert "canary-7" not in written.getvalue()


def test_a_library_is_heard_from_warnings_on_by_its_pattern_only(written: io.StringIO) -> None:
    library = logging.getLogger("some.library")
    library.info("GET %s", "/canary-7")
    library.warning("slow request to %s", "/canary-7", extra={"status": "canary-7"})
    library.error("failed for canary-7")

    slow, failed = lines(written)
    assert (slow["event"], slow["pattern"]) == ("library.log", "slow request to %s")
    assert "pattern" not in failed
    assert "canary-7" not in written.getvalue()


def test_a_record_that_can_not_be_written_is_not_printed_instead(written: io.StringIO) -> None:
    class Odd(str):
        __slots__ = ()

        def __getitem__(self, _key: object) -> str:
            raise RuntimeError("canary-7")

    logs.logger("runs").info("run.finished", extra={"reason": Odd("canary-7")})

    [line] = lines(written)
    assert line["event"] == "telemetry.failed"
    assert "canary-7" not in written.getvalue()
