"""The client behind `agentos run`: streams, reconnecting, refusals."""

import time
from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest
from rich.console import Console

from deploy.cli.run_command import Told, Totals, elapsed, money, short, show
from deploy.client import RunsClient, parse_events
from ports.errors import NotFound, Unavailable


def frame(sequence: int, kind: str, **data: object) -> str:
    body = msgspec.json.encode({"sequence": sequence, "type": kind, "data": data}).decode()
    return f"id: e.{sequence}\nevent: {kind}\ndata: {body}\n\n"


FRAMES = [frame(1, "run.created"), frame(2, "model.completed", text="hi"), frame(3, "run.completed", output="done")]


def client(answer: Callable[[httpx.Request], httpx.Response]) -> RunsClient:
    return RunsClient("http://node", "token", transport=httpx.MockTransport(answer), pause=lambda _: None)


class Broken(httpx.SyncByteStream):
    """A stream that dies after what it has to say."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("connection reset")


class TestParsing:
    def test_comments_and_unknown_fields_are_skipped(self) -> None:
        lines = f": keep-alive\n\nretry: 5\n{FRAMES[0]}".splitlines()

        [event] = parse_events(lines)

        assert (event.id, event.type, event.data["sequence"]) == ("e.1", "run.created", 1)

    def test_half_an_event_at_the_end_is_none(self) -> None:
        assert list(parse_events(FRAMES[0].rstrip("\n").splitlines())) == []


class TestFollowing:
    def test_a_broken_stream_is_resumed_after_the_last_event_seen(self) -> None:
        asked: list[str | None] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.headers.get("last-event-id"))
            if len(asked) == 1:
                return httpx.Response(200, stream=Broken(FRAMES[0]))
            return httpx.Response(200, text="".join(FRAMES[1:]))

        with client(answer) as api:
            events = list(api.follow("/v1/runs/run_x/events"))

        assert [event.id for event in events] == ["e.1", "e.2", "e.3"]
        assert asked == [None, "e.1"]

    def test_a_stream_that_ends_early_is_resumed_too(self) -> None:
        answers = iter([httpx.Response(200, text=FRAMES[0]), httpx.Response(200, text="".join(FRAMES[1:]))])

        with client(lambda _: next(answers)) as api:
            assert len(list(api.follow("/v1/runs/run_x/events"))) == 3

    def test_following_ends_with_the_terminal_event(self) -> None:
        with client(lambda _: httpx.Response(200, text="".join(FRAMES))) as api:
            assert [event.type for event in api.follow("/e")][-1] == "run.completed"

    def test_a_server_that_stays_away_is_told_with_what_to_do(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        with client(refuse) as api, pytest.raises(Unavailable, match=r"\./agentos status"):
            list(api.follow("/e"))

    def test_a_run_that_does_not_get_on_is_waited_for_as_long_as_was_said_whatever_keeps_the_stream_alive(self) -> None:
        def keep_alives() -> Iterator[bytes]:
            yield FRAMES[0].encode()
            over = time.monotonic() + 10
            while time.monotonic() < over:
                yield b": keep-alive\n\n"

        with (
            client(lambda _: httpx.Response(200, content=keep_alives())) as api,
            pytest.raises(TimeoutError),
        ):
            list(api.follow("/e", seconds=0.1))

    def test_a_server_that_stays_away_is_waited_for_no_longer_either(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        with client(refuse) as api, pytest.raises(TimeoutError):
            list(api.follow("/e", seconds=0))

    def test_a_refusal_is_not_retried(self) -> None:
        asked: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            return httpx.Response(404, json={"error": {"code": "not_found", "message": "there is no such run"}})

        with client(answer) as api, pytest.raises(NotFound, match="there is no such run"):
            list(api.follow("/v1/runs/run_x/events"))

        assert len(asked) == 1


class TestCreating:
    def test_a_run_is_created_with_a_key_and_the_token(self) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            assert request.headers["idempotency-key"]
            assert request.headers["authorization"] == "Bearer token"
            assert msgspec.json.decode(request.content) == {"input": "hello"}
            return httpx.Response(202, json={"run_id": "run_1", "status": "queued", "events_url": "/e", "more": 1})

        with client(answer) as api:
            assert api.create_run("agt_demo", "hello").run_id == "run_1"

    def test_an_answer_that_explains_nothing_is_unavailable(self) -> None:
        with client(lambda _: httpx.Response(500, text="oops")) as api, pytest.raises(Unavailable, match="500"):
            api.create_run("agt_demo", "hello")


class TestVerbs:
    def test_a_journal_is_read_to_its_end(self) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            first = "cursor" not in request.url.params
            return httpx.Response(
                200, json={"items": [{"n": 1 if first else 2}], "next_cursor": "c" if first else None}
            )

        with client(answer) as api:
            assert [step["n"] for step in api.steps("run_1")] == [1, 2]

    def test_each_verb_has_its_path_its_body_and_a_key_of_its_own(self) -> None:
        asked: list[tuple[str, object, str]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append((request.url.path, msgspec.json.decode(request.content), request.headers["idempotency-key"]))
            return httpx.Response(202, json={"run_id": "run_2", "status": "queued", "events_url": "/e"})

        decision = {"step": 2, "decision": "retry"}
        with client(answer) as api:
            api.cancel("run_1", reason="enough")
            api.retry("run_1")
            api.fork("run_1", from_step=3)
            api.resolve("run_1", decision)

        assert [(path, body) for path, body, _ in asked] == [
            ("/v1/runs/run_1:cancel", {"reason": "enough"}),
            ("/v1/runs/run_1:retry", {}),
            ("/v1/runs/run_1:fork", {"from_step": 3}),
            ("/v1/runs/run_1:resolve", decision),
        ]
        assert len({key for _, _, key in asked}) == 4


class TestShowing:
    def test_a_tool_call_is_one_line_each_way(self) -> None:
        console = Console(width=200, record=True, quiet=False, file=None)
        lines = (
            frame(1, "tool.requested", tool="calculator", arguments={"expression": "2+2"})
            + frame(2, "tool.completed", tool="calculator", status="completed", output={"result": 4}, duration_ms=3)
            + frame(3, "step.completed", step=1)
        ).splitlines()
        with console.capture() as captured:
            for event in parse_events(lines):
                show(console, event)

        assert captured.get().splitlines() == [
            '  → calculator {"expression":"2+2"}',
            '  ✓ calculator {"result":4} 3 ms',
        ]

    def test_a_call_of_an_agent_reads_like_that_of_a_tool_with_the_run_it_made(self) -> None:
        console = Console(width=200, file=None)
        lines = (
            frame(1, "agent.requested", agent="agt_b", arguments={"input": 1})
            + frame(2, "run.waiting", **{"for": "child", "children": [{"step": 2, "run_id": "run_1"}]})
            + frame(3, "agent.completed", agent="agt_b", status="completed", output={"run_id": "run_1"}, duration_ms=3)
        ).splitlines()
        with console.capture() as captured:
            for event in parse_events(lines):
                show(console, event)

        assert captured.get().splitlines() == [
            '  → agt_b {"input":1}',
            "  · waits for run_1",
            '  ✓ agt_b {"run_id":"run_1"} 3 ms',
        ]

    def test_text_grows_where_it_stands_and_other_lines_stay_whole(self) -> None:
        console = Console(width=20, file=None)
        told = Told(console)
        lines = (
            frame(1, "model.delta", step=1, attempt=1, text="It is [b]")
            + frame(2, "model.delta", step=1, attempt=2, text="It is a long [b]word[/b]")
            + frame(3, "model.delta", step=1, attempt=2, text="\nand more")
            + frame(4, "tool.requested", tool="t", arguments={})
        ).splitlines()
        with console.capture() as captured:
            for event in parse_events(lines):
                told.show(event)

        assert captured.get().splitlines() == [
            "It is [b]",
            "  · the answer broke",
            "off and begins again",
            "It is a long [b]word[/b]",
            "and more",
            "  → t {}",
        ]
        assert told.text == "It is a long [b]word[/b]\nand more"

    def test_totals_add_up_over_model_calls(self) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost_nanousd": 7, "estimated": True}
        lines = (frame(1, "model.completed", usage=usage) + frame(2, "model.completed", usage=usage)).splitlines()
        totals = Totals()
        for event in parse_events(lines):
            totals.add(event)

        assert totals == Totals(model_calls=2, prompt_tokens=20, completion_tokens=10, cost_nanousd=14, estimated=True)

    def test_long_values_are_cut_to_one_line(self) -> None:
        assert len(short("word\n" * 500)) == 300
        assert short({"a": 1}) == '{"a":1}'

    def test_money_is_dollars(self) -> None:
        assert money(0) == "$0"
        assert money(1_500_000) == "$0.001500"

    def test_elapsed_is_from_creation_to_the_end(self) -> None:
        view = {"created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:02.5Z"}

        assert elapsed(view) == 2.5
        assert elapsed({"created_at": "2026-01-01T00:00:00Z", "finished_at": None}) == 0.0
