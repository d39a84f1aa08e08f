"""Proof that the node works, from the outside: health of each part, then one run through all of them.

Changes nothing that matters: a run of the demo agent, and a tenant `tnt_validate` that is switched on for the isolation
test and off again. When a part is not healthy, what depends on it is skipped, and says so.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from msgspec import Struct

from deploy import credentials, plain_http
from deploy.action import Failed, Recorder
from deploy.bring_up import unhealthy
from deploy.budget_check import CODES, BudgetView, NoBudget, lack_of, no_budget, read_budget
from deploy.catalogue import Service, admin_url, stack_a_url, stack_b_url, worker_url
from deploy.client import Accepted, RunsClient, SseEvent
from deploy.config import Config
from deploy.credentials import Tokens
from deploy.health import probe
from deploy.internal import Directory, open_directory, operator_of
from deploy.report import Check
from deploy.seed import AGENT, issue
from deploy.supervision import Supervisor
from ports.errors import AgentOSError, Conflict
from ports.ids import KeyId, PrincipalId, TenantId
from ports.priority import HIGHEST
from ports.tenant import Entitlements

PROBE_TENANT: Final = TenantId("tnt_validate")
QUESTION: Final = "What is 17.5 % of 2340, and how many words are in: to be or not to be?"
# What the demo model must state; another model answers in its own words.
DEMO_ANSWER: Final = ("409.5", "6")

_RUN_SECONDS: Final = 60.0
_METRICS_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 0.25
_LOOKS: Final = 6
"""For a gateway that could not ask for its configuration, a second apart."""
_SAMPLE: Final = re.compile(r"^(agentos_[a-z0-9_]*(?:total|count))(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)
_OK: Final = 200
_UNAUTHENTICATED: Final = 401
_NOT_FOUND: Final = 404


class Smoked(Struct, frozen=True, kw_only=True):
    """The run that was made, and what was read of it."""

    accepted: Accepted
    events: tuple[SseEvent, ...]


class _Wrong(Exception):
    """A check found something; the text says what."""


def validate(recorder: Recorder, services: tuple[Service, ...], supervisor: Supervisor) -> None:
    """Every check as a phase of its action.

    Raises:
        Failed: at least one check did not hold; all of them are recorded.
    """
    with recorder.phase("validate") as notes:
        before = len(recorder.checks)
        sick = _check_health(recorder, services, supervisor)
        if not sick:
            _check_behaviour(recorder)
        else:
            recorder.check(_skipped("smoke tests", f"not tried: {', '.join(sick)} must be healthy first"))
        done = recorder.checks[before:]
        failed = [check for check in done if not check.ok and not check.skipped]
        if failed:
            raise Failed(failed[0])
        passed = sum(check.ok for check in done)
        skipped = f", {len(done) - passed} skipped" if passed < len(done) else ""
        notes.summary = f"{passed} checks passed{skipped}"


def _check_health(recorder: Recorder, services: tuple[Service, ...], supervisor: Supervisor) -> list[str]:
    """Names of the services that are not ready."""
    states = supervisor.states() if supervisor.alive() else {}
    sick = []
    for service in services:
        health = probe(service)
        state = states.get(service.name)
        if health.ok and state is not None:
            recorder.check(
                Check(name=f"{service.name} is ready", part=service.name, ok=True, ms=health.ms, detail=health.detail)
            )
            continue
        sick.append(service.name)
        found = unhealthy(recorder, health, f"{state.state} {state.remark}".strip() if state else "not supervised")
        if state is None or state.state in {"stopped", "exited", "fatal"}:
            found = Check(
                name=found.name,
                part=found.part,
                ok=False,
                ms=found.ms,
                detail=found.detail,
                log_tail=found.log_tail,
                next_command=f"./agentos up   (starts {service.name} again; its log: ./agentos logs {service.name})",
            )
        recorder.check(found)
    return sick


def _check_behaviour(recorder: Recorder) -> None:
    config = recorder.config
    _attempt(recorder, "anonymous callers are refused", "stack-a", lambda: _refuses_anonymous(recorder))
    _attempt(recorder, "the gateway goes by its newest configuration", "stack-b", lambda: _goes_by_the_newest(config))
    if config.mode == "prod":
        recorder.check(_skipped("sample run", "prod has no seeded agent; try one of yours with ./agentos run"))
        return
    tokens = credentials.load_tokens(recorder.node)
    if tokens is None or "app" not in tokens.keys:
        detail = f"{recorder.node.secret(credentials.TOKENS)} is missing: the demo tenant is not seeded"
        recorder.check(
            Check(name="tenant is seeded", part="seed", ok=False, detail=detail, next_command="./agentos up")
        )
        return
    with RunsClient(stack_a_url(config), tokens.keys["app"].api_key) as client:
        _attempt(recorder, "the seeded tenant and agent exist", "seed", lambda: _tenant_exists(client, tokens))
        counted = _counters(recorder)
        smoked = _attempt(
            recorder,
            "sample run: tool call, model call, completion",
            "smoke",
            lambda: _sample_run(recorder, client, tokens),
        )
        if smoked is None:
            return
        _attempt(recorder, "model calls were checked by the policy", "smoke", lambda: _policy_checked(smoked))
        _attempt(recorder, "the event stream resumes anywhere", "smoke", lambda: _resumes(client, smoked))
        _attempt(recorder, "metrics moved", "smoke", lambda: _metrics_moved(recorder, counted))
        _attempt(recorder, "another tenant sees nothing of it", "smoke", lambda: _isolated(recorder, smoked))


def _attempt(recorder: Recorder, name: str, part: str, check: Callable[[], Any]) -> Any:
    """Run one check; what it returns, or None when it failed."""
    began = time.perf_counter()
    detail, result, ok = "", None, True
    try:
        result = check()
        detail = result if isinstance(result, str) else _told(result)
    except NoBudget as error:
        # No service failed: whoever reads their logs now looks in the wrong place.
        ms = round((time.perf_counter() - began) * 1_000, 1)
        recorder.check(
            Check(name=name, part="budget", ok=False, ms=ms, detail=str(error), next_command=error.next_command)
        )
        return None
    except (_Wrong, AgentOSError, httpx.HTTPError) as error:
        ok, detail = False, str(error) or type(error).__name__
    ms = round((time.perf_counter() - began) * 1_000, 1)
    culprit = _culprit(part, detail)
    recorder.check(
        Check(
            name=name,
            part=part if ok else culprit,
            ok=ok,
            ms=ms,
            detail=detail,
            log_tail=() if ok else recorder.log_tail(culprit),
            next_command="" if ok else f"./agentos logs {culprit} -n 100",
        )
    )
    return result if ok else None


def _culprit(part: str, detail: str) -> str:
    """The service whose log to read first: the one the failure speaks of, else the one that executes runs."""
    if part != "smoke":
        return part
    if "model" in detail or "upstream" in detail or "Stack B" in detail:
        return "stack-b"
    return "stack-a-worker"


def _refuses_anonymous(recorder: Recorder) -> str:
    places = {
        "stack-a": f"{stack_a_url(recorder.config)}/v1/runs",
        "stack-b": f"{stack_b_url(recorder.config)}/v1/models",
        "admin": f"{admin_url(recorder.config)}/v1/admin/gateway/configuration",
    }
    for name, url in places.items():
        answer = plain_http.get(url, timeout=5.0)
        if answer.status_code != _UNAUTHENTICATED:
            raise _Wrong(f"{name} answered {answer.status_code} to a caller without a token, instead of 401")
    return "401 on Stack A, Stack B and the admin API"


def _goes_by_the_newest(config: Config) -> str:
    """The gateway's configuration: one that it can't use leaves it with an older one."""
    for look in range(_LOOKS):
        answer = plain_http.get(f"{stack_b_url(config)}/readyz", timeout=5.0)
        found = answer.json().get("configuration", {})
        if found.get("store_answers", True):
            break
        # Its database may have come back just now: it looks every other second.
        if look < _LOOKS - 1:
            time.sleep(1)
    if found.get("refused"):
        newest = f"version {found['refused_version']}" if found.get("refused_version") else "the file as it is now"
        raise _Wrong(f"the gateway can't use its newest configuration ({newest}); see ./agentos gateway check")
    if not found.get("store_answers", True):
        raise _Wrong("the gateway can't ask for its configuration, and goes by the last one that it knows")
    return f"{found.get('source', '?')}, version {found.get('version', '?')}, digest {found.get('digest', '?')}"


def _tenant_exists(client: RunsClient, tokens: Tokens) -> str:
    answer = client.get(f"/v1/agents/{tokens.agent_id}")
    if answer.status_code != _OK:
        raise _Wrong(f"{tokens.agent_id} answers {answer.status_code} to the seeded key; ./agentos up seeds it again")
    tenant = answer.json().get("tenant_id")
    if tenant != tokens.tenant_id:
        raise _Wrong(f"the seeded key speaks for {tenant}, not {tokens.tenant_id}")
    return f"{tenant}, {tokens.agent_id}"


def _sample_run(recorder: Recorder, client: RunsClient, tokens: Tokens) -> Smoked:
    _has_budget(recorder, tokens)
    # Before whatever else the tenant has queued: that it has much to do is nothing wrong.
    key = f"validate-{uuid.uuid4().hex}"
    accepted = client.create_run(AGENT, QUESTION, idempotency_key=key, priority=HIGHEST)
    events: list[SseEvent] = []
    try:
        events.extend(client.follow(accepted.events_url, seconds=_RUN_SECONDS))
    except TimeoutError as late:
        how = "is not finished" if any(event.type == "run.started" for event in events) else "was begun by no worker"
        raise _Wrong(f"{accepted.run_id} {how} after {_RUN_SECONDS:.0f} s") from late
    last = events[-1]
    if last.type != "run.completed":
        error = last.body.get("error", {})
        if error.get("code") in CODES:
            message = str(error.get("message", ""))
            raise no_budget(tokens.tenant_id, error["code"], _budget(recorder, tokens), message)
        raise _Wrong(f"{accepted.run_id} ended with {last.type}: {error.get('code', '?')}: {error.get('message', '')}")
    types = [event.type for event in events]
    for wanted in (
        "run.created",
        "run.started",
        "model.requested",
        "model.completed",
        "tool.requested",
        "tool.completed",
    ):
        if wanted not in types:
            raise _Wrong(f"{accepted.run_id} has no {wanted} event; it has {', '.join(dict.fromkeys(types))}")
    answer = str(last.body.get("output", ""))
    served = {event.body["route"].get("backend", "") for event in events if event.body.get("route")}
    if served == {"demo"} and not all(part in answer for part in DEMO_ANSWER):
        raise _Wrong(f"{accepted.run_id} completed, but its answer lacks {' or '.join(DEMO_ANSWER)}")
    recorder.progress.milestone(f"{accepted.run_id} completed with {len(events)} events")
    return Smoked(accepted=accepted, events=tuple(events))


def _has_budget(recorder: Recorder, tokens: Tokens) -> None:
    """Asked first: a run that waits for a budget held by others takes long to give up."""
    budget = _budget(recorder, tokens)
    if budget is not None and (lack := lack_of(budget)) is not None:
        raise no_budget(tokens.tenant_id, lack, budget)


def _budget(recorder: Recorder, tokens: Tokens) -> BudgetView | None:
    config, key = recorder.config, tokens.keys["app"].api_key
    return read_budget(stack_b_url(config), key, model=config.demo_agent_model, question=QUESTION)


def _policy_checked(smoked: Smoked) -> str:
    replies = [event.body for event in smoked.events if event.type == "model.completed"]
    for reply in replies:
        if not reply.get("policy_outcome") or not reply.get("route"):
            raise _Wrong("a model reply came without policy_outcome and route: it did not pass through the gateway")
    outcomes = sorted({str(reply["policy_outcome"].get("decision", "?")) for reply in replies})
    return f"{len(replies)} model calls through Stack B: {', '.join(outcomes)}"


def _resumes(client: RunsClient, smoked: Smoked) -> str:
    """From the start, the middle and the end: what comes is exactly what was left."""
    ids = [event.id for event in smoked.events]
    cuts = sorted({0, len(ids) // 2, len(ids) - 1})
    for cut in cuts:
        again = [event.id for event in client.stream(smoked.accepted.events_url, after=ids[cut])]
        if again != ids[cut + 1 :]:
            raise _Wrong(f"resumed after {ids[cut]}, {len(again)} events came instead of {len(ids) - cut - 1}")
    return f"resumed after {len(cuts)} of {len(ids)} events"


def _counters(recorder: Recorder) -> dict[str, float]:
    """The sum of every counter over the node's processes."""
    config = recorder.config
    found: dict[str, float] = {}
    for url in (stack_a_url(config), stack_b_url(config), worker_url(config)):
        answer = plain_http.get(f"{url}/metrics", timeout=5.0)
        for name, value in _SAMPLE.findall(answer.text if answer.status_code == _OK else ""):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def _metrics_moved(recorder: Recorder, before: dict[str, float]) -> str:
    """Runs, tool calls and model calls must show: all three stacks of counters, not just any."""
    end_at = time.monotonic() + _METRICS_SECONDS
    while True:
        after = _counters(recorder)
        moved = sorted(name for name, value in after.items() if value > before.get(name, 0.0))
        missing = [
            area for area in ("run", "tool", "model") if not any(name.startswith(f"agentos_{area}_") for name in moved)
        ]
        if not missing:
            return f"{len(moved)} counters moved"
        if time.monotonic() > end_at:
            raise _Wrong(f"no counter about {', '.join(missing)} moved within {_METRICS_SECONDS:.0f} s of the run")
        time.sleep(_PAUSE_SECONDS)


def _isolated(recorder: Recorder, smoked: Smoked) -> str:
    return asyncio.run(_isolation(recorder, smoked))


async def _isolation(recorder: Recorder, smoked: Smoked) -> str:
    """Another tenant reads, lists, follows and cancels: it must learn no more than of a run that does not exist."""
    async with open_directory(recorder.node) as directory, _stranger(directory, recorder.config.mode) as token:
        return await asyncio.to_thread(_compare, recorder, smoked.accepted.run_id, token)


def _compare(recorder: Recorder, run_id: str, token: str) -> str:
    absent = f"run_{uuid.uuid4().hex}"
    with RunsClient(stack_a_url(recorder.config), token) as client:
        for suffix in ("", "/events", "/steps"):
            foreign = client.get(f"/v1/runs/{run_id}{suffix}")
            unknown = client.get(f"/v1/runs/{absent}{suffix}")
            _same(foreign, unknown, run_id, absent, f"GET …{suffix or '/run'}")
        foreign = client.post(f"/v1/runs/{run_id}:cancel", {}, idempotency_key=uuid.uuid4().hex)
        unknown = client.post(f"/v1/runs/{absent}:cancel", {}, idempotency_key=uuid.uuid4().hex)
        _same(foreign, unknown, run_id, absent, "cancel")
        for listing in ("/v1/runs", "/v1/agents"):
            answer = client.get(listing)
            if answer.status_code != _OK or answer.json()["items"]:
                raise _Wrong(f"{listing} shows another tenant something: status {answer.status_code}")
    return "read, list, events, steps and cancel: the same bytes as for an absent run"


def _same(foreign: httpx.Response, unknown: httpx.Response, run_id: str, absent: str, what: str) -> None:
    """Equal but for the two things that must differ: the id that was asked for, and the request's own id."""
    if foreign.status_code != _NOT_FOUND or unknown.status_code != _NOT_FOUND:
        raise _Wrong(f"{what}: {foreign.status_code} for another tenant's run, {unknown.status_code} for an absent one")
    texts = []
    for answer, name in ((foreign, run_id), (unknown, absent)):
        correlation = answer.headers.get("x-correlation-id", "")
        text = answer.text.replace(name, "<run>")
        texts.append(text.replace(correlation, "<id>") if correlation else text)
    if texts[0] != texts[1]:
        raise _Wrong(f"{what}: the answer for another tenant's run differs from that for an absent one")


@asynccontextmanager
async def _stranger(directory: Directory, mode: str) -> AsyncIterator[str]:
    """A key of a tenant that exists for this check only; revoked, and its tenant disabled, afterwards."""
    operator = operator_of(PROBE_TENANT)
    try:
        await directory.tenants.create(
            operator, PROBE_TENANT, name="Validation", entitlements=Entitlements(tokens_per_day=0)
        )
    except Conflict:
        await directory.tenants.set_status(operator, PROBE_TENANT, "active")
    key = await issue(
        directory,
        PROBE_TENANT,
        principal=PrincipalId("svc_validate"),
        role="service",
        env=mode,
        label="isolation check",
        lifetime=timedelta(minutes=10),
        now=datetime.now(UTC),
    )
    try:
        yield key.api_key
    finally:
        await directory.tenants.revoke_key(operator, KeyId(key.key_id))
        await directory.tenants.set_status(operator, PROBE_TENANT, "disabled")


def _told(result: object) -> str:
    if isinstance(result, Smoked):
        calls = sum(event.type == "tool.completed" for event in result.events)
        turns = sum(event.type == "model.completed" for event in result.events)
        return f"{result.accepted.run_id}: {turns} model calls, {calls} tool calls, {len(result.events)} events"
    return ""


def _skipped(name: str, why: str) -> Check:
    return Check(name=name, part="smoke", ok=False, skipped=True, detail=why)
