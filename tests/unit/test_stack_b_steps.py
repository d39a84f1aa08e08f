"""A call under a step key is made once: whoever asks, however often, whether they stay or leave."""

import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from conformance.faults import Faults
from conformance.people import ACME
from observability.metrics import Metrics
from ports.errors import InvalidArgument, Unavailable
from ports.messages import Json
from ports.reply_journal import Done, Won
from stack_b import entries as entries_module
from stack_b import steps as steps_module
from stack_b.backends.protocol import OUTCOME_UNKNOWN
from stack_b.canonical import ChatCall
from stack_b.chunks import written_out
from stack_b.limits import Limits
from stack_b.once import of_step
from stack_b.pipeline import Pipeline
from stack_b.replay import Gathered, chunks_of, digest_of
from stack_b.steps import Steps
from stack_b.tell import Tell
from tests.support.held_backend import SAID, SPENT, HeldBackend
from tests.support.stack_b import CALLERS, PLATFORM, StackB, stack_b

pytestmark = [pytest.mark.anyio]

KEY = "run_1:1"
ENTRY = of_step(ACME, KEY).key
ASKED: Any = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]}


async def ask(
    node: StackB, who: str = "acme", *, key: str = KEY, correlation: str = "c-1", **more: Any
) -> httpx.Response:
    headers = {"x-step-key": key, "x-correlation-id": correlation}
    return await node.post("/v1/chat/completions", {**ASKED, **more}, who, **headers)


async def abort(node: StackB, who: str = "acme", *, key: str = KEY) -> bool:
    answer = await node.post("/v1/steps:cancel", {"step_key": key}, who)
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["aborted"])


def said(answer: httpx.Response) -> str:
    """What a reply says, streamed or not."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/json":
        return str(answer.json()["choices"][0]["message"]["content"])
    return "".join(choice["delta"].get("content") or "" for chunk in chunks(answer) for choice in chunk["choices"])


def chunks(answer: httpx.Response) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", answer.text
    return [json.loads(line) for line in lines[:-1]]


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not true():
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def left(call: Callable[[], Coroutine[Any, Any, object]], backend: HeldBackend) -> AsyncIterator[None]:
    """The block runs while `call`'s client is gone, and its backend still at work."""
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        with anyio.fail_after(10):
            await backend.begun.wait()
        group.cancel_scope.cancel()
    yield


class TestOnce:
    async def test_fifty_at_once_are_one_call_and_all_get_its_reply(self) -> None:
        backend = HeldBackend()
        answers: list[httpx.Response] = []

        async def one(number: int) -> None:
            answers.append(await ask(node, correlation=f"c-{number}"))

        async with stack_b(backend) as node:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for number in range(50):
                        group.start_soon(one, number)
                    await backend.begun.wait()
                    backend.let_go.set()
            balance = await node.balance()

        assert backend.calls == 1
        assert {said(answer) for answer in answers} == {SAID}
        assert sorted(answer.json()["route"]["replayed"] for answer in answers) == [False] + [True] * 49
        assert all(answer.json()["correlation_id"] == answer.headers["x-correlation-id"] for answer in answers)
        assert (balance.settled, balance.held) == (SPENT, 0)

    async def test_a_repeat_gets_the_reply_and_the_receipt_of_when_it_was_paid_and_pays_nothing(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node:
            first, again = (await ask(node)).json(), (await ask(node, correlation="c-2")).json()
            balance = await node.balance()

        assert backend.calls == 1
        assert again == {**first, "correlation_id": "c-2", "route": {**first["route"], "replayed": True}}
        assert first["usage"]["total_tokens"] == SPENT == balance.settled

    @pytest.mark.parametrize("first", [False, True], ids=["json first", "stream first"])
    @pytest.mark.parametrize("second", [False, True], ids=["then json", "then stream"])
    async def test_each_gets_the_form_it_asks_for(self, *, first: bool, second: bool) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node:
            answers = [await ask(node, stream=first), await ask(node, stream=second)]

        assert [said(answer) for answer in answers] == [SAID, SAID]
        assert backend.calls == 1
        if second:
            last = chunks(answers[1])[-1]
            assert last["choices"][0]["finish_reason"] == "stop"
            assert (last["usage"]["total_tokens"], last["route"]["replayed"]) == (SPENT, True)

    async def test_another_tenants_same_key_is_another_call(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node:
            answers = [await ask(node, who) for who in ("acme", "globex")]
            balances = [(await node.balance(who)).settled for who in ("acme", "globex")]

        assert [answer.json()["route"]["replayed"] for answer in answers] == [False, False]
        assert balances == [SPENT, SPENT]

    async def test_another_request_under_the_key_is_refused_before_and_after(self) -> None:
        backend = HeldBackend()
        async with stack_b(backend) as node:
            async with left(lambda: ask(node), backend):
                during = await ask(node, temperature=0.5)
            backend.let_go.set()
            await ask(node)
            after = await ask(node, temperature=0.5)

        for refused in (during, after):
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert backend.calls == 1

    @pytest.mark.parametrize("key", ["", " ", "a b", "x" * 129, "ä"])
    async def test_what_cannot_be_a_step_key_is_refused(self, key: str) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            headers = {b"authorization": b"Bearer acme", b"x-step-key": key.encode()}
            answer = await node.http.post("/v1/chat/completions", json=ASKED, headers=headers)

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")

    async def test_two_step_keys_in_one_request_are_refused(self) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            headers = [("authorization", "Bearer acme"), ("x-step-key", "a"), ("x-step-key", "b")]
            answer = await node.http.post("/v1/chat/completions", json=ASKED, headers=headers)

        assert answer.status_code == 400

    async def test_a_tenant_that_was_disabled_gets_nothing_from_the_journal(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node, stack_b(backend, reply_journal=node.deps.reply_journal) as other:
            await ask(node)
            await other.deps.tenant.set_status(PLATFORM, CALLERS["acme"].tenant, "disabled")
            refused = await ask(other)

        assert refused.json()["error"]["code"] == "tenant_disabled"


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_call_whose_client_left_ends_and_is_journaled(self, *, stream: bool) -> None:
        backend = HeldBackend()
        async with stack_b(backend) as node:
            async with left(lambda: ask(node, stream=stream), backend):
                held = (await node.balance()).held
                backend.let_go.set()
            again = await ask(node, stream=stream)
            balance = await node.balance()

        assert held > 0
        assert (said(again), backend.calls, backend.cancelled) == (SAID, 1, 0)
        assert (balance.settled, balance.held) == (SPENT, 0)

    async def test_closing_the_gateway_waits_for_calls_without_a_client(self) -> None:
        backend = HeldBackend()
        async with stack_b() as other:
            journal = other.deps.reply_journal
            async with (
                anyio.create_task_group() as group,
                stack_b(backend, reply_journal=journal) as node,
                left(lambda: ask(node), backend),
            ):
                group.start_soon(_later, backend.let_go)
            async with stack_b(backend, reply_journal=journal) as next_one:
                again = await ask(next_one)

        assert again.json()["route"]["replayed"] is True
        assert (backend.calls, backend.cancelled) == (1, 0)

    async def test_what_outlasts_the_grace_is_cut_off_settled_and_flagged(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps_module, "DRAIN_S", 0.05)
        backend = HeldBackend()
        async with stack_b() as other:
            journal = other.deps.reply_journal
            async with stack_b(backend, reply_journal=journal) as node, left(lambda: ask(node), backend):
                pass
            balance = await node.balance()
            backend.let_go.set()
            # Not only after the lease of the one that is gone.
            with anyio.fail_after(entries_module.LEASE.total_seconds() / 2):
                async with stack_b(backend, reply_journal=journal) as next_one:
                    again = await ask(next_one)

        assert (backend.calls, backend.cancelled) == (2, 1)
        assert balance.held == 0
        assert balance.settled > 0
        assert again.json()["route"]["possible_duplicate"] is True


async def _later(event: anyio.Event) -> None:
    # The gateway's closing runs meanwhile: nothing tells a test how far it has come.
    await anyio.sleep(0.1)
    event.set()


class TestAborting:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_abort_ends_the_call_in_the_backend_at_once(self, *, stream: bool) -> None:
        backend = HeldBackend()
        async with stack_b(backend) as node:
            async with left(lambda: ask(node, stream=stream), backend):
                began = time.perf_counter()
                aborted = await abort(node)
                await backend.stopped.wait()
                took = time.perf_counter() - began
            balance = await node.balance()
            backend.let_go.set()
            again = await ask(node, stream=stream)

        assert aborted is True
        assert took < 0.25
        assert balance.held == 0
        assert balance.settled > 0, "the prompt was sent"
        route = chunks(again)[-1]["route"] if stream else again.json()["route"]
        assert (route["replayed"], route["possible_duplicate"]) == (False, True)

    async def test_who_waits_for_an_aborted_call_is_told(self) -> None:
        backend = HeldBackend()
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await ask(node))

        async with stack_b(backend) as node:
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait)
                    group.start_soon(wait)
                    await backend.begun.wait()
                    await abort(node)

        errors = [answer.json()["error"] for answer in answers]
        assert [(answer.status_code, error["code"]) for answer, error in zip(answers, errors, strict=True)] == [
            (409, "conflict")
        ] * 2
        assert not any(error["retryable"] for error in errors)

    async def test_what_nobody_calls_is_not_aborted_and_a_journaled_reply_stays(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node:
            absent = await abort(node)
            await ask(node)
            ended = await abort(node)
            again = await ask(node)

        assert (absent, ended) == (False, False)
        assert again.json()["route"]["replayed"] is True

    async def test_another_tenant_aborts_nothing(self) -> None:
        backend = HeldBackend()
        async with stack_b(backend) as node:
            async with left(lambda: ask(node), backend):
                aborted = await abort(node, "globex")
                backend.let_go.set()
            again = await ask(node)

        assert aborted is False
        assert again.json()["route"]["replayed"] is True

    @pytest.mark.parametrize("body", [{}, {"step_key": "a b"}, {"step_key": 1}, {"step_key": "a", "more": 1}])
    async def test_an_abort_of_nonsense_is_refused(self, body: Json) -> None:
        async with stack_b(HeldBackend()) as node:
            answer = await node.post("/v1/steps:cancel", body)

        assert answer.status_code in {400, 422}

    async def test_an_abort_needs_the_scope(self) -> None:
        async with stack_b(HeldBackend()) as node:
            answer = await node.post("/v1/steps:cancel", {"step_key": KEY}, "reader")

        assert answer.status_code == 403


class TestElsewhere:
    """Two gateways over one journal."""

    async def test_a_call_that_another_process_makes_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "LOOK_EVERY", timedelta(milliseconds=5))
        backend, idle = HeldBackend(), HeldBackend()
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await ask(other))

        async with (
            stack_b(backend) as node,
            stack_b(idle, reply_journal=node.deps.reply_journal) as other,
            left(lambda: ask(node), backend),
            anyio.create_task_group() as group,
        ):
            group.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            backend.let_go.set()

        assert said(answers[0]) == SAID
        assert answers[0].json()["route"]["replayed"] is True
        assert (backend.calls, idle.calls) == (1, 0)

    async def test_the_wait_ends_with_an_error_to_be_retried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "LOOK_EVERY", timedelta(milliseconds=5))
        backend, idle = HeldBackend(), HeldBackend()
        async with stack_b(backend) as node:
            shared: dict[str, Any] = {"reply_journal": node.deps.reply_journal, "limits": Limits(request_s=1)}
            async with stack_b(idle, **shared) as other, left(lambda: ask(node), backend):
                answer = await ask(other)
                backend.let_go.set()

        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["retryable"]) == (409, "idempotency_in_progress", True)
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")

    async def test_an_abort_reaches_the_process_that_makes_the_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "EXTEND_EVERY", timedelta(milliseconds=5))
        backend, idle = HeldBackend(), HeldBackend()
        async with (
            stack_b(backend) as node,
            stack_b(idle, reply_journal=node.deps.reply_journal) as other,
            left(lambda: ask(node), backend),
        ):
            aborted = await abort(other)
            with anyio.fail_after(5):
                await backend.stopped.wait()

        assert aborted is True

    async def test_an_abort_ends_the_wait_as_well_as_the_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "LOOK_EVERY", timedelta(milliseconds=5))
        monkeypatch.setattr(steps_module, "EXTEND_EVERY", timedelta(milliseconds=5))
        backend, idle = HeldBackend(), HeldBackend(held=False)
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await ask(other))

        async with (
            stack_b(backend) as node,
            stack_b(idle, reply_journal=node.deps.reply_journal) as other,
            left(lambda: ask(node), backend),
        ):
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    await abort(other)
                await backend.stopped.wait()

        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "conflict")
        assert idle.calls == 0

    async def test_who_only_waits_and_leaves_makes_no_call_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "LOOK_EVERY", timedelta(milliseconds=5))
        idle = HeldBackend()
        async with stack_b(idle) as node:
            journal = node.deps.reply_journal
            lost = await journal.open(ACME, ENTRY, digest_of(_call()), lease=timedelta(hours=1))
            with anyio.move_on_after(0.05):
                await ask(node)
            assert isinstance(lost, Won)
            await journal.abandon(ACME, lost.ticket, maybe_made=False)
            # Longer than the waiting task takes to look again.
            await anyio.sleep(0.05)

        assert idle.calls == 0

    async def test_a_call_whose_process_was_lost_is_made_again_and_says_so(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend) as node:
            await node.deps.reply_journal.open(ACME, ENTRY, digest_of(_call()), lease=timedelta(microseconds=1))
            first, again = (await ask(node)).json(), (await ask(node)).json()

        assert (first["route"]["possible_duplicate"], first["route"]["replayed"]) == (True, False)
        assert (again["route"]["possible_duplicate"], again["route"]["replayed"]) == (True, True)
        assert backend.calls == 1


def _call() -> ChatCall:
    """`ASKED`, as the parser makes it."""
    return ChatCall(model="m-1", members={"messages": ASKED["messages"]})


class TestFailing:
    async def test_a_final_refusal_of_the_backend_is_journaled_too(self) -> None:
        backend = HeldBackend(held=False)
        backend.failure = InvalidArgument("no", details={"upstream_status": 400, "upstream_param": "seed"})
        async with stack_b(backend) as node:
            answers = [await ask(node) for _ in range(2)]

        assert backend.calls == 1
        errors = [answer.json()["error"] for answer in answers]
        assert [(answer.status_code, error["param"]) for answer, error in zip(answers, errors, strict=True)] == [
            (400, "seed")
        ] * 2
        assert errors[0]["route"] == errors[1]["route"]

    @pytest.mark.parametrize(
        ("failure", "maybe"),
        [
            (Unavailable("no", code="upstream_error", details={"upstream_status": 503}), False),
            (Unavailable("broke", code="upstream_error", details=OUTCOME_UNKNOWN), True),
            (Unavailable("late", code="upstream_timeout", details=OUTCOME_UNKNOWN), True),
        ],
        ids=["refused", "broke", "late"],
    )
    async def test_a_passing_failure_is_asked_again_and_flagged_where_it_may_have_been_paid(
        self, failure: Unavailable, *, maybe: bool
    ) -> None:
        backend = HeldBackend(held=False)
        backend.failure = failure
        async with stack_b(backend) as node:
            failed = await ask(node)
            backend.failure = None
            again = (await ask(node)).json()

        assert failed.json()["error"]["code"] == failure.code
        assert (again["route"]["replayed"], again["route"]["possible_duplicate"]) == (False, maybe)

    async def test_our_own_refusal_costs_nothing_and_is_decided_anew(self) -> None:
        backend = HeldBackend(held=False)
        async with stack_b(backend, limit=6_000) as node:
            hold = await node.deps.budget.reserve(ACME, 5_000, limit=6_000, lease=timedelta(minutes=1))
            refused = await ask(node)
            await node.deps.budget.settle(ACME, hold.id, 0)
            again = (await ask(node)).json()

        assert refused.json()["error"]["code"] == "budget_in_flight"
        assert (again["route"]["replayed"], again["route"]["possible_duplicate"]) == (False, False)

    async def test_a_deadline_ends_the_call_and_may_have_been_paid(self) -> None:
        backend = HeldBackend()
        async with stack_b(backend, limits=Limits(request_s=1)) as node:
            late = await ask(node)
            backend.let_go.set()
            again = await ask(node)

        assert (late.status_code, late.json()["error"]["code"]) == (504, "upstream_timeout")
        assert backend.cancelled == 1
        assert again.json()["route"]["possible_duplicate"] is True

    async def test_without_the_journal_nothing_is_sent(self) -> None:
        backend = HeldBackend(held=False)
        async with faulty(backend, open="before") as (node, _):
            answer = await ask(node)
            other = await node.post("/v1/chat/completions", ASKED)

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert other.status_code == 200, "who has no step needs no journal"
        assert backend.calls == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_reply_waits_for_a_journal_that_is_away(self, when: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entries_module, "JOURNAL_RETRY", timedelta(milliseconds=5))
        backend = HeldBackend(held=False)
        async with faulty(backend, complete=when) as (node, _):
            first = await ask(node)
            kept = await node.deps.reply_journal.open(ACME, ENTRY, digest_of(_call()), lease=timedelta(seconds=1))

        assert said(first) == SAID
        assert isinstance(kept, Done)

    async def test_a_reply_that_cannot_be_journaled_is_given_out_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entries_module, "JOURNAL_PATIENCE", timedelta(0))
        async with faulty(HeldBackend(held=False), complete="before") as (node, _):
            answer = await ask(node)

        assert said(answer) == SAID

    async def test_the_end_of_a_stream_is_not_told_before_it_is_journaled(self) -> None:
        backend = HeldBackend(held=False)
        told: list[dict[str, Json]] = []
        async with faulty(backend, complete="late") as (node, faults):
            steps = Steps(node.deps, Pipeline(node.deps, Tell(Metrics())))

            async def listen() -> None:
                async for pieces in steps.stream(ACME, _call_streamed(), of_step(ACME, KEY)):
                    told.extend(written_out(pieces))

            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(listen)
                    await faults.held()
                    await until(lambda: len(told) >= 3)
                    before = [chunk["choices"][0]["finish_reason"] for chunk in told]
                    faults.let_go()

        assert set(before) == {None}
        assert told[-1]["choices"][0]["finish_reason"] == "stop"


def _call_streamed() -> ChatCall:
    return ChatCall(model="m-1", members={"messages": ASKED["messages"]}, stream=True)


@asynccontextmanager
async def faulty(backend: HeldBackend, **planned: Any) -> AsyncIterator[tuple[StackB, Faults]]:
    """A gateway whose journal fails once, as planned by method."""
    faults = Faults()
    async with stack_b() as other, stack_b(backend, reply_journal=faults.around(other.deps.reply_journal)) as node:
        for method, kind in planned.items():
            faults.inject(method, kind)
        yield node, faults


class TestForms:
    @pytest.mark.parametrize("include_usage", [False, True])
    async def test_a_reply_survives_being_streamed(self, *, include_usage: bool) -> None:
        calls = [{"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in (1, 2)]
        reply: dict[str, Json] = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m", "system_fingerprint": "fp",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "one", "reasoning": "because"},
                 "logprobs": {"content": [{"token": "one"}]}, "finish_reason": "stop"},
                {"index": 1, "message": {"role": "assistant", "content": None, "tool_calls": calls},
                 "finish_reason": "tool_calls"},
            ],
            "usage": {"total_tokens": 3}, "policy_outcome": {"decision": "allowed"}, "route": {"backend": "up"},
            "correlation_id": "c", "tenant_id": "tnt_acme",
        }  # fmt: skip

        streamed = chunks_of(reply, include_usage=include_usage)
        gathered = Gathered()
        for chunk in streamed:
            gathered.add(chunk)

        assert gathered.reply() == reply
        assert (streamed[-1]["choices"] == []) is include_usage

    async def test_the_digest_is_of_what_is_asked_and_not_of_how(self) -> None:
        assert digest_of(_call()) == digest_of(_call_streamed())
        assert digest_of(_call()) != digest_of(ChatCall(model="m-2", members=_call().members))
        assert digest_of(_call()) != digest_of(ChatCall(model="m-1", members=_call().members, max_tokens=1))
