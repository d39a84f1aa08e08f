"""What is noted of each request, and what is kept of its texts."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, cast

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from adapters.inproc.request_log import InprocRequestLog, Requests
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, Unavailable
from ports.request_log import DENIED, RequestRecord, Written, new_request_id
from ports.tenant import StorePrompts
from stack_b.records import writer as writer_module
from stack_b.records.recorder import CONTENT
from stack_b.records.writer import RecordWriter
from tests.support.held_backend import HeldBackend
from tests.support.http_server import served
from tests.support.scripted_upstream import ScriptedUpstream, Whole, delta, usage
from tests.support.stack_b import PLATFORM, VAULT, StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

READER: Final = replace(ACME, scopes=frozenset({"usage:read", "audit:read"}))
CANARY: Final = "canary.bird@example.com"
SECRET: Final = "sk-canary-0123456789abcdefghijklmnop"
CHAT: Final = "/v1/chat/completions"


def table(node: StackB) -> Requests:
    return cast("InprocRequestLog", node.deps.request_log)._table


async def records(node: StackB, count: int) -> list[RequestRecord]:
    """The tenant's, oldest first, once there are so many."""
    with anyio.fail_after(5):
        while len(found := (await node.deps.request_log.recent(READER, limit=50)).items) < count:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return list(found[::-1])


async def keeping(node: StackB, days: int = 3) -> None:
    tenant = await node.deps.tenant.get(PLATFORM, ACME.tenant)
    wanted = replace(tenant.entitlements, store_prompts=StorePrompts(retention_days=days))
    await node.deps.tenant.set_entitlements(PLATFORM, ACME.tenant, wanted)


async def text_of(node: StackB, record: RequestRecord) -> str:
    sealed = await node.deps.request_log.content(READER, record.id)
    return VAULT.open(ACME.tenant, CONTENT, record.id, sealed).decode()


class TestEachRequest:
    @pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
    async def test_says_who_asked_what_and_what_it_cost(self, *, stream: bool) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            answer = await node.post(
                CHAT, {"model": "m-1", "messages": [{"role": "user", "content": CANARY}], "stream": stream},
                **{"x-correlation-id": "c-1"},
            )  # fmt: skip
            [record] = await records(node, 1)
            paid = await node.deps.budget.usage(ACME, record.id)

        assert answer.status_code == 200
        assert (record.principal, record.route, record.correlation_id) == (ACME.principal, CHAT, "c-1")
        assert (record.model_asked, record.model, record.backend) == ("m-1", "m-1", "held")
        assert (record.status, record.code, record.stream, record.denied) == (200, "", stream, False)
        assert (record.decision, record.reasons) == ("redacted", ("pii:email",))
        assert (record.prompt_tokens, record.completion_tokens) == (10, 20)
        assert [(one.backend, one.tokens) for one in record.attempts] == [("held", 30)]
        assert [event.amount.tokens for event in paid] == [30]
        assert record.kept_until is None

    async def test_says_how_it_failed(self) -> None:
        backend = HeldBackend(held=False)
        backend.failure = Unavailable("no", code="upstream_error", details={"upstream_status": 503})
        async with stack_b(backend) as node:
            await node.post(CHAT, {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]})
            [record] = await records(node, 1)

        assert (record.status, record.code, record.denied) == (502, "upstream_error", False)
        assert [(one.status, one.reason) for one in record.attempts] == [(503, "upstream_error")]

    async def test_says_who_was_answered_with_what_another_has_paid(self) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            for _ in range(2):
                await node.post(
                    CHAT,
                    {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]},
                    **{"idempotency-key": "k"},
                )
            first, again = await records(node, 2)

        assert (first.replayed, again.replayed) == (False, True)
        assert (first.completion_tokens, again.completion_tokens) == (20, 0)

    @pytest.mark.parametrize(
        ("body", "code", "reasons"),
        [
            ({"model": "other", "messages": [{"role": "user", "content": "x"}]}, "model_not_entitled", ()),
            ({"model": "m-1", "messages": [{"role": "user", "content": CANARY}]}, "policy_blocked", ("pii:email",)),
        ],
        ids=["entitlement", "policy"],
    )
    async def test_a_denial_is_in_the_audit_when_it_is_told(
        self, body: Any, code: str, reasons: tuple[str, ...]
    ) -> None:
        async with stack_b(HeldBackend(held=False), pii_modes={"email": "block"}) as node:
            answer = await node.post(CHAT, body)
            audit, rows = list(table(node).audit), list(table(node).rows.values())

        [written] = rows
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        assert audit == [(ACME.tenant, DENIED, written.record.id)]
        assert (written.record.denied, written.record.code, written.record.reasons) == (True, code, reasons)

    @pytest.mark.parametrize(
        ("who", "headers", "code"),
        [("reader", {}, "insufficient_scope"), ("acme", {"x-tenant-id": GLOBEX.tenant}, "tenant_mismatch")],
        ids=["scope", "tenant"],
    )
    async def test_so_is_one_at_the_edge(self, who: str, headers: dict[str, str], code: str) -> None:
        """Where nothing was asked of a model yet."""
        async with stack_b(HeldBackend(held=False)) as node:
            answer = await node.post(CHAT, {"model": "m-1", "messages": []}, who, **headers)
            audit, rows = list(table(node).audit), list(table(node).rows.values())

        [written] = rows
        record = written.record
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        assert audit == [(ACME.tenant, DENIED, record.id)]
        assert (record.route, record.status, record.code, record.denied) == (CHAT, 403, code, True)
        assert (record.principal, record.model_asked) == (ACME.principal, "")
        assert record.correlation_id == answer.headers["x-correlation-id"]


class TestTexts:
    @pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
    async def test_are_nowhere_unless_the_tenant_asks(self, *, stream: bool) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            await node.post(
                CHAT, {"model": "m-1", "messages": [{"role": "user", "content": "the bird sings"}], "stream": stream}
            )
            [record] = await records(node, 1)
            everything = repr(table(node))

        assert "bird" not in everything
        assert record.kept_until is None

    @pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
    async def test_are_kept_redacted_and_sealed_where_it_does(self, *, stream: bool) -> None:
        async with stack_b(Echo(held=False), pii_modes={"email": "reversible", "secret": "allow"}) as node:
            await keeping(node)
            said = f"write to {CANARY} with {SECRET} about the bird"
            answer = await node.post(
                CHAT, {"model": "m-1", "messages": [{"role": "user", "content": said}], "stream": stream}
            )
            [record] = await records(node, 1)
            everything = repr(table(node))
            text = await text_of(node, record)

        assert CANARY in answer.text
        assert record.kept_until == record.at + timedelta(days=3)
        assert not [word for word in (CANARY, SECRET, "bird", "[EMAIL") if word in everything]
        assert CANARY not in text
        assert SECRET not in text
        kept = msgspec.json.decode(text)
        assert "about the bird" in kept["prompt"]["messages"][0]["content"]
        assert "[EMAIL_" in kept["prompt"]["messages"][0]["content"]
        assert "about the bird" in kept["answer"][0]["message"]["content"]

    @pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
    async def test_an_answer_is_kept_as_it_was_shown_with_its_placeholders_standing(self, *, stream: bool) -> None:
        """What a rule has hidden is not kept; what the client was given back is, as the model had it."""
        hidden = {"id": "no", "effect": "deny", "on": ["output"], "keywords": ["blue heron"]}
        said = f"write to {CANARY} soon, the blue heron flies"
        asked = {"model": "m-1", "messages": [{"role": "user", "content": said}], "stream": stream}
        async with stack_b(Echo(held=False), pii_modes={"email": "reversible"}, rules=[hidden]) as node:
            await keeping(node)
            answer = await node.post(CHAT, asked)
            [record] = await records(node, 1)
            kept = msgspec.json.decode(await text_of(node, record))

        assert CANARY in (spoken(answer.text) if stream else answer.text)
        assert "heron" not in answer.text
        [choice] = kept["answer"]
        assert choice["message"]["content"].startswith("write to [EMAIL_")
        assert "heron" not in choice["message"]["content"]
        assert choice["finish_reason"] == "content_filter"

    async def test_are_gone_when_their_time_is_over(self) -> None:
        clock = ManualClock()
        async with stack_b(HeldBackend(held=False), clock=clock) as node:
            await keeping(node, days=1)
            await node.post(CHAT, {"model": "m-1", "messages": [{"role": "user", "content": "the bird sings"}]})
            [record] = await records(node, 1)
            before = await text_of(node, record)
            await clock.advance(timedelta(days=1))

            with pytest.raises(NotFound):
                await text_of(node, record)

        assert "the bird sings" in before

    async def test_are_not_kept_where_they_can_not_be_looked_at(self) -> None:
        class Failing:
            """Can't look at an answer as it is kept."""

            def __init__(self, inner: Any) -> None:
                self._inner = inner
                self.capabilities = inner.capabilities

            def elsewhere(self) -> None:
                return None

            async def detect(self, auth: AuthContext, text: str) -> Any:
                if text == "finish_reason":
                    raise Unavailable("the detector is away")
                return await self._inner.detect(auth, text)

        async with stack_b() as other, stack_b(HeldBackend(held=False), pii=Failing(other.deps.pii)) as node:
            await keeping(node)
            answer = await node.post(
                CHAT, {"model": "m-1", "messages": [{"role": "user", "content": "the bird sings"}]}
            )
            [record] = await records(node, 1)
            everything = repr(table(node))

        assert (answer.status_code, record.status, record.kept_until) == (200, 200, None)
        assert "bird" not in everything


def spoken(stream: str) -> str:
    """What the chunks of a stream say together."""
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: {")]
    said = [choice["delta"].get("content") for line in lines for choice in msgspec.json.decode(line)["choices"]]
    return "".join(text or "" for text in said)


class Echo(HeldBackend):
    """Says what it was told."""

    async def chat(self, model: str, body: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        answer = await super().chat(model, body, max_tokens)
        answer["choices"][0]["message"]["content"] = body["messages"][0]["content"]
        return answer

    async def stream(self, _model: str, body: dict[str, Any], _max_tokens: int) -> Any:
        await self._wait()
        said = body["messages"][0]["content"]
        yield delta(role="assistant", content="")
        for at in range(0, len(said), 7):
            yield delta(content=said[at : at + 7])
        yield delta("stop")
        yield {"id": "chatcmpl-up", "choices": [], "usage": usage(10, 20)}


async def test_what_a_backend_says_of_its_keys_is_in_no_record() -> None:
    refused = Whole({"error": {"message": f"Incorrect API key provided: {SECRET}", "code": SECRET}}, status=401)
    async with (
        served(ScriptedUpstream([refused])) as origin,
        upstream_at(f"{origin}/v1", api_key=SECRET) as backend,
        stack_b(backend) as node,
    ):
        await keeping(node)
        answer = await node.post(CHAT, {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]})
        [record] = await records(node, 1)
        everything = repr(table(node))

    assert (answer.status_code, record.code) == (502, "upstream_auth_error")
    assert SECRET not in everything
    assert SECRET not in answer.text


class Log:
    """A log that fails as told, and refuses `never` for good; what it took is in `batches`."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.never: set[str] = set()
        self.asked = 0
        self.batches: list[tuple[str, list[str]]] = []
        self.wrote = anyio.Event()

    async def write(self, auth: AuthContext, records: Sequence[Written]) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        if any(one.record.id in self.never for one in records):
            raise InvalidArgument("never")
        self.batches.append((auth.tenant, [one.record.id for one in records]))
        self.wrote.set()


def written(*, denied: bool = False) -> Written:
    at = ManualClock().now()
    return Written(
        record=RequestRecord(
            id=new_request_id(at), at=at, namespace="default", principal="p", correlation_id="c", route="r",
            model_asked="m", status=403 if denied else 200, denied=denied,
        )
    )  # fmt: skip


class TestWriter:
    async def test_what_comes_together_is_written_together_by_tenant(self) -> None:
        log = Log()
        writer = RecordWriter(cast("Any", log), ManualClock())
        of_acme, of_globex = [written() for _ in range(5)], [written() for _ in range(2)]
        for one in of_acme:
            writer.note(ACME, one)
        for one in of_globex:
            writer.note(GLOBEX, one)

        await writer.drain()

        assert sorted(log.batches) == [
            (ACME.tenant, [one.record.id for one in of_acme]),
            (GLOBEX.tenant, [one.record.id for one in of_globex]),
        ]

    async def test_what_the_log_can_not_take_now_is_written_later(self) -> None:
        log, clock = Log(Unavailable("away"), Unavailable("away")), ManualClock()
        writer = RecordWriter(cast("Any", log), clock)
        one = written()
        writer.note(ACME, one)

        with anyio.fail_after(5):
            while not log.wrote.is_set():
                await asyncio.sleep(0.01)
                await clock.advance(writer_module.RETRY)

        assert log.batches == [(ACME.tenant, [one.record.id])]

    async def test_what_the_log_refuses_is_not_tried_again(self) -> None:
        log = Log(InvalidArgument("never"))
        writer = RecordWriter(cast("Any", log), ManualClock())
        writer.note(ACME, written())
        await writer.drain()
        good = written()

        writer.note(ACME, good)
        await writer.drain()

        assert log.batches == [(ACME.tenant, [good.record.id])]

    async def test_one_that_the_log_refuses_takes_no_other_with_it(self) -> None:
        log, dropped = Log(), list[int]()
        writer = RecordWriter(cast("Any", log), ManualClock(), dropped.append)
        noted = [written() for _ in range(50)]
        log.never = {noted[at].record.id for at in (0, 17, 49)}
        for one in noted:
            writer.note(ACME, one)

        await writer.drain()

        taken = [request for _, requests in log.batches for request in requests]
        assert taken == [one.record.id for one in noted if one.record.id not in log.never]
        assert sum(dropped) == 3

    async def test_one_that_the_log_refuses_is_found_although_it_is_away_meanwhile(self) -> None:
        """What was taken before is not asked for twice, and nothing is lost but that one."""
        log, clock = Log(InvalidArgument("never"), Unavailable("away")), ManualClock()
        writer = RecordWriter(cast("Any", log), clock)
        noted = [written() for _ in range(4)]
        log.never = {noted[1].record.id}
        for one in noted:
            writer.note(ACME, one)

        with anyio.fail_after(5):
            while len(log.batches) < 2:
                await asyncio.sleep(0.01)
                await clock.advance(writer_module.RETRY)

        assert [request for _, requests in log.batches for request in requests] == [
            one.record.id for one in noted if one is not noted[1]
        ]

    async def test_a_log_that_refuses_everything_is_not_asked_about_each(self) -> None:
        log, dropped = Log(), list[int]()
        writer = RecordWriter(cast("Any", log), ManualClock(), dropped.append)
        noted = [written() for _ in range(500)]
        log.never = {one.record.id for one in noted}
        for one in noted:
            writer.note(ACME, one)

        await writer.drain()

        assert sum(dropped) == 500
        assert log.asked == 17, "500 to 1 in halves, eight of one, and the rest"

    async def test_beyond_its_limit_the_oldest_goes_but_no_denial(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer_module, "MAX_WAITING", 3)
        log = Log()
        dropped: list[int] = []
        writer = RecordWriter(cast("Any", log), ManualClock(), dropped.append)
        denial, *others = [written(denied=True), *(written() for _ in range(4))]

        for one in (denial, *others):
            writer.note(ACME, one)
        await writer.drain()

        assert log.batches == [(ACME.tenant, [denial.record.id, *(one.record.id for one in others[2:])])]
        assert sum(dropped) == 2

    async def test_a_denial_waits_for_the_audit_and_not_for_company(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer_module, "GATHER_S", 60)
        log = Log()
        writer = RecordWriter(cast("Any", log), ManualClock())
        one = written(denied=True)

        with anyio.fail_after(5):
            await writer.denied(ACME, one)

        assert log.batches == [(ACME.tenant, [one.record.id])]

    async def test_a_denial_is_told_although_the_audit_is_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer_module, "DENIAL_WAIT_S", 0.02)
        log, clock = Log(Unavailable("away")), ManualClock()
        writer = RecordWriter(cast("Any", log), clock)
        one = written(denied=True)

        with anyio.fail_after(5):
            await writer.denied(ACME, one)
            before = list(log.batches)
            while not log.wrote.is_set():
                await asyncio.sleep(0.01)
                await clock.advance(writer_module.RETRY)

        assert before == []
        assert log.batches == [(ACME.tenant, [one.record.id])]


async def test_a_name_that_leads_nowhere_is_in_no_record() -> None:
    """It may be any text, such as somebody's address."""
    async with stack_b(HeldBackend(held=False), models=("m-2",)) as node:
        statuses = [
            (await node.post(path, {"model": model, "messages": [{"role": "user", "content": "hi"}]})).status_code
            for path in ("/v1/chat/completions", "/v1/policy/check")
            for model in (CANARY, "m-1")
        ]
        found = await records(node, 4)

    assert statuses == [403] * 4
    assert sorted(one.model_asked for one in found) == ["", "", "m-1", "m-1"]
