"""A tenant without budget is told as what it is, and no service is blamed for it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from deploy import smoke
from deploy.action import Recorder
from deploy.budget_check import CODES, BudgetView, NoBudget, lack_of, no_budget, read_budget
from deploy.client import RunsClient
from deploy.config import Config
from deploy.credentials import SeededKey, Tokens
from deploy.node import Node
from ports.errors import CODES as EVERY_CODE
from tests.support.cli import Silent
from tests.support.ports import free_port


def view(*, settled: int = 0, held: int = 0, would_hold: int = 1_300, limit: int = 1_000_000) -> BudgetView:
    return BudgetView(
        limit=limit, settled=settled, held=held, window_end=datetime(2026, 11, 21, tzinfo=UTC), would_hold=would_hold
    )


@pytest.mark.parametrize(
    ("budget", "lack"),
    [
        (view(), None),
        (view(settled=998_700), None),
        (view(settled=998_701), "budget_exceeded"),
        (view(settled=500_000, held=499_000), "budget_in_flight"),
        (view(limit=100), "request_exceeds_budget"),
        (view(limit=0), "request_exceeds_budget"),
    ],
)
def test_what_is_lacking_is_what_the_ledger_would_refuse_with(budget: BudgetView, lack: str | None) -> None:
    assert lack_of(budget) == lack


def test_the_codes_are_those_of_the_contract() -> None:
    assert {code for code in EVERY_CODE if "budget" in code} == CODES


def test_a_spent_budget_is_told_with_its_numbers_and_when_it_starts_anew() -> None:
    told = no_budget("tnt_demo", "budget_exceeded", view(settled=999_936))

    assert "the token budget of tnt_demo is spent (budget_exceeded)" in str(told)
    assert "of 1,000,000 tokens a UTC day, 999,936 are spent" in str(told)
    assert told.next_command.startswith("./agentos validate   (after it starts anew at 2026-11-21 00:00 UTC")
    assert "./agentos tenant quota tnt_demo --tokens-per-day 2000000" in told.next_command


def test_a_held_budget_is_told_with_what_to_wait_for() -> None:
    told = no_budget("tnt_demo", "budget_in_flight", view(held=999_936))

    assert "999,936 are held by calls at work" in str(told)
    assert told.next_command.startswith("./agentos validate   (when they have ended")


def test_a_budget_that_never_suffices_is_told_with_a_command_that_helps() -> None:
    told = no_budget("tnt_demo", "request_exceeds_budget", view(limit=100))

    assert "too small" in str(told)
    assert told.next_command == "./agentos tenant quota tnt_demo --tokens-per-day 1000000"


def test_without_the_gateway_s_numbers_the_run_s_own_words_are_told() -> None:
    told = no_budget("tnt_demo", "budget_exceeded", None, "999936 of 1000000 tokens are spent")

    assert "999936 of 1000000 tokens are spent" in str(told)
    assert "00:00 UTC" in told.next_command


def test_a_gateway_that_does_not_answer_tells_no_budget() -> None:
    assert read_budget(f"http://127.0.0.1:{free_port()}", "key", model="m", question="?") is None


def test_the_check_names_the_budget_and_no_service_and_shows_no_log(tmp_path: Path) -> None:
    recorder = Recorder("validate", Node.locate({"AGENTOS_HOME": str(tmp_path)}), Config(), Silent())
    recorder.node.create()
    recorder.node.log_of("stack-a-worker").write_text("irrelevant\n")
    recorder.node.log_of("stack-b").write_text("irrelevant\n")

    def fail() -> None:
        raise no_budget("tnt_demo", "budget_exceeded", view(settled=999_936))

    smoke._attempt(recorder, "sample run", "smoke", fail)

    [check] = recorder.checks
    assert (check.ok, check.part, check.log_tail) == (False, "budget", ())
    assert check.next_command.startswith("./agentos validate")


def test_a_sample_run_that_failed_for_its_budget_is_told_so_too(tmp_path: Path) -> None:
    failed = {"data": {"error": {"code": "budget_exceeded", "message": "999936 of 1000000 tokens are spent"}}}

    def node(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"run_id": "run_1", "status": "queued", "events_url": "/events"})
        return httpx.Response(200, text=f"id: e.1\nevent: run.failed\ndata: {json.dumps(failed)}\n\n")

    nowhere = Config(stack_b_port=free_port())
    recorder = Recorder("validate", Node.locate({"AGENTOS_HOME": str(tmp_path)}), nowhere, Silent())
    key = SeededKey(principal="svc_x", roles=(), scopes=(), key_id="key_x", api_key="k")
    tokens = Tokens(tenant_id="tnt_demo", agent_id="agt_demo", keys={"app": key})

    with (
        RunsClient("http://node", "k", transport=httpx.MockTransport(node)) as client,
        pytest.raises(NoBudget, match="999936 of 1000000"),
    ):
        smoke._sample_run(recorder, client, tokens)
