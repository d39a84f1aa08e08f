"""The smoke tests' own judgement: each check must be able to fail."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from deploy import smoke
from deploy.action import Recorder
from deploy.client import Accepted, RunsClient, SseEvent
from deploy.config import Config
from deploy.credentials import SeededKey, Tokens
from deploy.node import Node
from deploy.smoke import Smoked
from ports.errors import Unavailable
from ports.priority import HIGHEST
from tests.support.cli import Silent


def answer(status: int, text: str, correlation: str = "cor_1") -> httpx.Response:
    return httpx.Response(status, text=text, headers={"x-correlation-id": correlation})


def event(number: int, kind: str, **data: object) -> SseEvent:
    return SseEvent(id=f"e.{number}", type=kind, data={"sequence": number, "type": kind, "data": data})


def smoked(*events: SseEvent) -> Smoked:
    return Smoked(accepted=Accepted(run_id="run_1", status="queued", events_url="/e"), events=events)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder("validate", Node.locate({"AGENTOS_HOME": str(tmp_path)}), Config(), Silent())


class TestIsolation:
    def test_answers_that_differ_in_the_asked_id_and_the_request_s_id_only_are_the_same(self) -> None:
        foreign = answer(404, "there is no run 'run_a' (cor_1)", "cor_1")
        unknown = answer(404, "there is no run 'run_b' (cor_2)", "cor_2")

        smoke._same(foreign, unknown, "run_a", "run_b", "read")

    def test_a_foreign_run_that_is_shown_is_a_leak(self) -> None:
        with pytest.raises(smoke._Wrong, match="200 for another tenant's run"):
            smoke._same(answer(200, "{}"), answer(404, "{}"), "run_a", "run_b", "read")

    def test_a_foreign_run_that_is_forbidden_is_a_leak_too(self) -> None:
        with pytest.raises(smoke._Wrong, match="403"):
            smoke._same(answer(403, "{}"), answer(404, "{}"), "run_a", "run_b", "read")

    def test_a_difference_in_the_words_is_a_leak(self) -> None:
        with pytest.raises(smoke._Wrong, match="differs"):
            smoke._same(answer(404, "gone"), answer(404, "absent"), "run_a", "run_b", "read")


class TestPolicy:
    def test_a_reply_without_a_receipt_did_not_pass_through_the_gateway(self) -> None:
        with pytest.raises(smoke._Wrong, match="gateway"):
            smoke._policy_checked(smoked(event(1, "model.completed", text="hi")))

    def test_a_reply_with_a_receipt_did(self) -> None:
        receipt = {"policy_outcome": {"decision": "allowed"}, "route": {"backend": "demo"}}

        assert smoke._policy_checked(smoked(event(1, "model.completed", **receipt))).endswith("allowed")


class TestSampleRun:
    def test_it_waits_behind_nothing_that_the_tenant_has_queued_and_not_for_ever(
        self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(smoke, "_RUN_SECONDS", 0.1)
        created: list[dict[str, object]] = []

        def node(request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                created.append(msgspec.json.decode(request.content))
                return httpx.Response(202, json={"run_id": "run_1", "status": "queued", "events_url": "/e"})
            return httpx.Response(200, content=queued())

        def queued() -> Iterator[bytes]:
            yield b"id: e.1\nevent: run.created\ndata: {}\n\n"
            over = time.monotonic() + 10
            while time.monotonic() < over:
                yield b": keep-alive\n\n"

        key = SeededKey(principal="svc_app", roles=(), scopes=(), key_id="key_1", api_key="k")
        tokens = Tokens(tenant_id="tnt_demo", agent_id="agt_demo", keys={"app": key})
        with (
            RunsClient("http://node", "t", transport=httpx.MockTransport(node)) as client,
            pytest.raises(smoke._Wrong, match="run_1 was begun by no worker after 0 s"),
        ):
            smoke._sample_run(recorder, client, tokens)

        assert [one["priority"] for one in created] == [HIGHEST]


class TestResuming:
    def test_a_stream_that_starts_over_is_found(self) -> None:
        def replay(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text="".join(f"id: e.{n}\nevent: x\ndata: {{}}\n\n" for n in (1, 2, 3)))

        events = smoked(*(event(n, "x") for n in (1, 2, 3)))
        with (
            RunsClient("http://node", "t", transport=httpx.MockTransport(replay)) as client,
            pytest.raises(smoke._Wrong, match=r"resumed after e\.1"),
        ):
            smoke._resumes(client, events)


class TestAttempts:
    def test_a_failed_check_names_the_part_to_look_at(self, recorder: Recorder) -> None:
        def fail() -> None:
            raise Unavailable("the model call failed upstream")

        smoke._attempt(recorder, "sample run", "smoke", fail)

        [check] = recorder.checks
        assert (check.ok, check.part) == (False, "stack-b")
        assert check.next_command == "./agentos logs stack-b -n 100"

    def test_a_run_that_does_not_get_on_is_the_worker_s(self, recorder: Recorder) -> None:
        def fail() -> None:
            raise Unavailable("run_1 is not finished after 60 s")

        smoke._attempt(recorder, "sample run", "smoke", fail)

        assert recorder.checks[0].part == "stack-a-worker"

    def test_counters_are_read_out_of_the_text_format(self) -> None:
        text = 'agentos_run_completions_total{status="succeeded"} 3.0\nagentos_run_active_runs 1\npython_x_total 9\n'

        assert smoke._SAMPLE.findall(text) == [("agentos_run_completions_total", "3.0")]
