"""Stack A's public API as an integrator meets it, without a worker: what is accepted, refused, shown and hidden."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from conformance.faults import Faults
from conformance.people import ACME
from ports.agent import MAX_RUN_DEPTH, AgentSpec
from ports.http.limits import COMMON
from ports.ids import AgentId
from tests.support.stack_a import AGENT, StackA, events_of, stack_a

pytestmark = pytest.mark.anyio

ABSENT = "run_" + "0" * 32


@pytest.fixture
async def node() -> AsyncIterator[StackA]:
    async with stack_a() as made:
        yield made


async def test_a_run_is_accepted_with_what_an_integrator_needs(node: StackA) -> None:
    response = await node.create(input={"question": "1 + 1"}, context={"ticket": 7}, session_id="s-1", deadline_s=60)

    body = response.json()
    assert response.status_code == 202
    assert body["status"] == "queued"
    assert body["events_url"] == f"/v1/runs/{body['run_id']}/events"
    assert (body["tenant_id"], body["namespace"]) == ("tnt_acme", "default")
    assert body["correlation_id"] == response.headers["x-correlation-id"]
    assert (await node.api.queue.depth(ACME)).ready == 1


async def test_the_run_reads_back_as_it_was_created(node: StackA) -> None:
    run_id = await node.created(input="hello", context={"a": [1, None]}, tool_allowlist=["add"], deadline_s=60)

    body = (await node.get(f"/v1/runs/{run_id}")).json()

    assert (body["run_id"], body["input"], body["context"]) == (run_id, "hello", {"a": [1, None]})
    assert body["tool_allowlist"] == ["add"]
    assert (body["agent_id"], body["agent_version"]) == ("agt_demo", 1)
    assert body["deadline_at"] > body["created_at"]


async def test_repeating_with_the_same_key_and_body_gives_the_same_run(node: StackA) -> None:
    first = await node.http.post(
        "/v1/agents/agt_demo/runs",
        headers=node.headers(**{"idempotency-key": "k", "content-type": "application/json"}),
        content=b'{"input": "x", "context": {"a": 1, "b": 2}}',
    )
    again = await node.http.post(
        "/v1/agents/agt_demo/runs",
        headers=node.headers(**{"idempotency-key": "k", "content-type": "application/json"}),
        content=b'{"context":{"b":2,"a":1},"input":"x"}',
    )

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["run_id"] == again.json()["run_id"]
    assert len((await node.get("/v1/runs")).json()["items"]) == 1


async def test_fifty_at_once_with_one_key_make_one_run(node: StackA) -> None:
    ids: set[str] = set()

    async def one() -> None:
        ids.add((await node.create(key="k")).json()["run_id"])

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(one)

    assert len(ids) == 1


async def test_the_same_key_with_another_body_is_refused(node: StackA) -> None:
    await node.create(key="k", input="x")

    response = await node.create(key="k", input="y")

    assert (response.status_code, response.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_a_key_is_not_burnt_by_a_request_that_was_refused(node: StackA) -> None:
    refused = await node.create(key="k", tool_allowlist=["nonsense"])
    accepted = await node.create(key="k")

    assert (refused.status_code, accepted.status_code) == (422, 202)


async def test_a_store_that_does_not_answer_is_asked_once_and_the_client_told_to_come_back() -> None:
    """Each question to a stalled database takes seconds: two of them are longer than anybody should wait."""
    faults = Faults()
    faults.inject("get", "before")
    asked: list[str] = []

    class Counting:
        def __init__(self, port: Any) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self._port, name)

    async with stack_a(wrap=lambda name, port: Counting(port) if name == "run_state" else faults.around(port)) as node:
        response = await node.create()

    assert (response.status_code, response.json()["error"]["retryable"]) == (503, True)
    assert asked == []


async def test_a_repeat_is_answered_although_the_agent_no_longer_takes_it(node: StackA) -> None:
    first = await node.create(key="k", tool_allowlist=["add"])
    await node.api.agent.publish(ACME, AgentSpec(id=AGENT.id, model="m", tools=()))

    again = await node.create(key="k", tool_allowlist=["add"])
    new = await node.create(key="other", tool_allowlist=["add"])

    assert again.json()["run_id"] == first.json()["run_id"]
    assert new.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": "x", "unknown": 1},
        {"input": "x", "context": []},
        {"input": "x", "tool_allowlist": "add"},
        {"input": "x", "tool_allowlist": ["add"] * 129},
        {"input": "x", "tool_allowlist": ["foreign_tool"]},
        {"input": "x", "tool_allowlist": ["add", "add"]},
        {"input": "x", "deadline_s": 0},
        {"input": "x", "deadline_s": 10**9},
        {"input": "x", "session_id": ""},
        {"input": "x", "session_id": "s" * 129},
    ],
)
async def test_a_body_of_the_wrong_shape_is_422_and_makes_nothing(node: StackA, body: dict[str, Any]) -> None:
    response = await node.http.post(
        "/v1/agents/agt_demo/runs", headers=node.headers(**{"idempotency-key": "k"}), json=body
    )

    assert (response.status_code, response.json()["error"]["code"]) == (422, "validation_failed")
    assert (await node.get("/v1/runs")).json()["items"] == []


async def test_a_body_tenant_may_only_repeat_the_tokens(node: StackA) -> None:
    same = await node.create(tenant="tnt_acme")
    other = await node.create(tenant="tnt_globex")

    assert same.status_code == 202
    assert (other.status_code, other.json()["error"]["code"]) == (403, "tenant_mismatch")


@pytest.mark.parametrize("agent_id", ["agt_absent", "nonsense", "agt_%00", "agt_x%2Fy"])
async def test_a_run_of_an_agent_that_is_not_there_is_404(node: StackA, agent_id: str) -> None:
    response = await node.http.post(
        f"/v1/agents/{agent_id}/runs", headers=node.headers(**{"idempotency-key": "k"}), json={"input": 1}
    )

    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/runs/{id}", "/v1/runs/{id}/steps", "/v1/runs/{id}/events"])
async def test_another_tenants_run_reads_like_an_absent_one(node: StackA, path: str) -> None:
    run_id = await node.created()

    foreign = await node.get(path.format(id=run_id), "globex")
    absent = await node.get(path.format(id=ABSENT), "globex")

    assert foreign.status_code == absent.status_code == 404
    assert masked(foreign.text, run_id) == masked(absent.text, ABSENT)


async def test_another_tenant_can_neither_list_nor_cancel_a_run(node: StackA) -> None:
    run_id = await node.created()

    listed = (await node.get("/v1/runs", "globex")).json()["items"]
    foreign = await node.cancel(run_id, "globex")
    absent = await node.cancel(ABSENT, "globex")

    assert listed == []
    assert masked(foreign.text, run_id) == masked(absent.text, ABSENT)
    assert (await node.get(f"/v1/runs/{run_id}")).json()["cancel_requested_at"] is None


async def test_another_tenants_agent_reads_like_an_absent_one(node: StackA) -> None:
    await node.api.agent.publish(ACME, AgentSpec(id=AgentId("agt_secret"), model="m"))

    foreign = await node.get("/v1/agents/agt_secret", "globex")
    absent = await node.get("/v1/agents/agt_absent", "globex")
    listed = (await node.get("/v1/agents", "globex")).json()["items"]

    assert foreign.status_code == 404
    assert masked(foreign.text, "agt_secret") == masked(absent.text, "agt_absent")
    assert [item["agent_id"] for item in listed] == ["agt_demo"]


async def test_runs_are_listed_newest_first_in_pages_that_miss_nothing(node: StackA) -> None:
    made = [await node.created() for _ in range(5)]

    seen: list[str] = []
    cursor = ""
    while True:
        page = (await node.get(f"/v1/runs?limit=2{cursor}")).json()
        seen += [item["run_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert seen == made[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=x",
        "cursor=%00",
        "status=nonsense",
        "unknown=1",
        "limit=1&limit=2",
        "agent_id=%00",
        "agent_id=%ff",
        "agent_id=nonsense",
    ],
)
async def test_a_query_that_makes_no_sense_is_400(node: StackA, query: str) -> None:
    response = await node.get(f"/v1/runs?{query}")

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_runs_can_be_filtered_by_status_and_agent(node: StackA) -> None:
    cancelled = await node.created()
    await node.cancel(cancelled)
    queued = await node.created()

    by_status = (await node.get("/v1/runs?status=queued")).json()["items"]
    by_agent = (await node.get("/v1/runs?agent_id=agt_other")).json()["items"]

    assert [item["run_id"] for item in by_status] == [queued]
    assert by_agent == []


async def test_cancelling_a_queued_run_ends_it_and_cancelling_again_changes_nothing(node: StackA) -> None:
    run_id = await node.created()

    first = await node.cancel(run_id)
    again = await node.cancel(run_id)

    assert first.json()["status"] == "cancelled"
    assert again.json() == first.json()


async def test_who_may_only_cancel_hears_that_it_is_so_and_nothing_of_what_was_said(node: StackA) -> None:
    run_id = await node.created(input="between us", context={"ticket": "private"})

    told = (await node.cancel(run_id, "canceller")).json()

    assert (told["run_id"], told["status"]) == (run_id, "cancelled")
    assert (told["input"], told["context"], told["output"], told["error"]) == (None, {}, None, None)
    assert (await node.get(f"/v1/runs/{run_id}", "canceller")).status_code == 403


async def test_the_key_of_a_cancel_means_that_cancel_and_no_other(node: StackA) -> None:
    run_id, other = await node.created(), await node.created()
    headers = node.headers(**{"idempotency-key": "k"})

    first = await node.http.post(f"/v1/runs/{run_id}:cancel", headers=headers)
    again = await node.http.post(f"/v1/runs/{run_id}:cancel", headers=headers)
    elsewhere = await node.http.post(f"/v1/runs/{other}:cancel", headers=headers)

    assert (first.status_code, again.json()) == (200, first.json())
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_the_stream_of_an_ended_run_is_its_whole_log_and_closes(node: StackA) -> None:
    run_id = await node.created()
    await node.cancel(run_id)

    response = await node.get(f"/v1/runs/{run_id}/events")

    events = events_of(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [event["event"] for event in events] == ["run.created", "run.cancelled"]
    assert [event["sequence"] for event in events] == [1, 2]
    assert {event["tenant_id"] for event in events} == {"tnt_acme"}


async def test_resuming_at_every_event_gives_the_rest_of_the_same_log(node: StackA) -> None:
    run_id = await node.created()
    await node.cancel(run_id)
    whole = events_of((await node.get(f"/v1/runs/{run_id}/events")).text)

    for i, event in enumerate(whole, start=1):
        by_header = await node.get(f"/v1/runs/{run_id}/events", **{"last-event-id": event["id"]})
        by_query = await node.get(f"/v1/runs/{run_id}/events?after={event['id']}")

        assert events_of(by_header.text) == events_of(by_query.text) == whole[i:]


@pytest.mark.parametrize("cursor", ["x", "other.1", "{epoch}.99", "{epoch}.-1", "{epoch}.1.1"])
async def test_an_event_id_that_is_not_of_this_stream_is_400(node: StackA, cursor: str) -> None:
    run_id = await node.created()
    text = cursor.format(epoch=node.api.event.stream_epoch)

    # Taken for one of this stream, it would be followed until the run ends.
    with anyio.fail_after(10):
        response = await node.get(f"/v1/runs/{run_id}/events", **{"last-event-id": text})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_agents_are_shown_with_their_version_and_digest(node: StackA) -> None:
    await node.api.agent.publish(ACME, AgentSpec(id=AGENT.id, model="other"))

    newest = (await node.get("/v1/agents/agt_demo")).json()
    first = (await node.get("/v1/agents/agt_demo?version=1")).json()
    absent = await node.get("/v1/agents/agt_demo?version=3")

    assert (newest["version"], newest["model"], newest["tenant_id"]) == (2, "other", "tnt_acme")
    assert (first["version"], first["model"]) == (1, "m")
    assert newest["digest"] != first["digest"]
    assert absent.status_code == 404


async def test_the_node_says_that_it_is_alive_ready_and_what_it_serves(node: StackA) -> None:
    health = await node.http.get("/healthz")
    ready = await node.http.get("/readyz")
    metrics = await node.http.get("/metrics")
    openapi = (await node.http.get("/openapi.json")).json()

    assert health.json() == {"status": "ok"}
    assert ready.json() == {"status": "ok", "dependencies": {"database": "ok"}}
    assert "agentos_http_requests_total" in metrics.text
    assert "/v1/runs/{run_id}:cancel" in openapi["paths"]
    assert openapi["info"]["x-agentos-limits"].items() >= (COMMON | {"max_run_depth": MAX_RUN_DEPTH}).items()


def masked(text: str, name: str) -> list[str]:
    """The body without what may differ: the id that was asked for, and the correlation."""
    return [part for part in text.replace(name, "ID").split(",") if "correlation_id" not in part]
