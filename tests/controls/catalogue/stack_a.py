"""Stack A: runs and their events."""

from typing import Final

from tests.controls.removal import Removal

EDGE: Final = "ports/http/edge.py"
PLAN: Final = "stack_a/runs/plan.py"
POLICY: Final = "stack_a/tools/policy.py"

REMOVALS: Final = (
    Removal(
        "T6",
        "adapters/postgres/sql/run_append.sql",
        "r.id = a.run AND r.epoch = a.epoch\n",
        "r.id = a.run\n",
        ("test_a_worker_that_was_taken_over_can_write_nothing",),
    ),
    Removal(
        "T6",
        "adapters/inproc/run_state.py",
        '    if run.status != "running" or run.epoch != epoch:\n',
        '    if run.status != "running":\n',
        ("test_a_worker_that_was_taken_over_can_write_nothing",),
    ),
    Removal(
        "T7",
        "ports/http/sse.py",
        "    if match[1] != stream_epoch:\n",
        "    if not match[1]:\n",
        ("test_a_malformed_or_foreign_event_id_is_refused", "test_an_event_id_that_is_not_of_this_stream_is_400"),
    ),
    Removal(
        "R1",
        "adapters/postgres/sql/run_create.sql",
        "    INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id)\n"
        "    SELECT a.tenant,",
        "    SELECT a.tenant,",
        ("test_each_change_is_in_the_audit", "test_what_can_not_be_noted_does_not_happen"),
    ),
    Removal(
        "R1",
        EDGE,
        "            await self._denied(auth, route.template, error)\n",
        "",
        ("test_each_denial_is_in_the_audit",),
    ),
    Removal(
        "D10",
        "stack_a/http/stream.py",
        "        with anyio.move_on_after(patience.total_seconds()) as self._patience:\n",
        "        with anyio.move_on_after(100 * patience.total_seconds()) as self._patience:\n",
        ("test_a_reader_that_takes_nothing_is_closed_with_lagged_and_resumes_without_a_gap",),
    ),
    Removal(
        "D10",
        "stack_a/http/stream.py",
        "            await send(message)\n",
        "            asyncio.get_running_loop().create_task(send(message))\n",
        ("test_a_reader_that_takes_nothing_costs_no_more_memory_than_a_page",),
    ),
    Removal(
        "D11",
        "stack_a/runs/shed.py",
        "        if self._depth > self._limits.max_queue_depth:\n",
        "        if self._depth < 0:\n",
        ("test_runs_are_accepted_up_to_the_depth_and_refused_beyond_it",),
    ),
    Removal(
        "D12",
        PLAN,
        "            return _too_long(agent) if last > agent.limits.max_steps else CallTools(calls=tuple(open_calls))\n",
        "            return CallTools(calls=tuple(open_calls)) if last else _too_long(agent)\n",
        ("test_the_step_limit_ends_the_run_before_the_step_beyond_it",),
    ),
    Removal(
        "D12",
        PLAN,
        "    if most is not None and spent >= most:\n",
        "    if most is not None and spent < 0:\n",
        ("test_the_cost_limit_ends_the_run_before_another_model_call",),
    ),
    Removal(
        "D12",
        "stack_a/tools/agents.py",
        "    if run.depth >= most:\n",
        "    if run.depth < 0:\n",
        ("test_a_run_that_is_deep_enough_hands_nothing_on",),
    ),
    Removal(
        "E6",
        "stack_a/http/routes.py",
        'template="/v1/runs/{run_id}:resolve", access="approvals:decide"',
        'template="/v1/runs/{run_id}:resolve", access="runs:create"',
        ("test_who_may_start_and_stop_runs_may_not_decide_about_tool_calls",),
    ),
    Removal(
        "E7",
        POLICY,
        "if name in tools and name in allowed and run",
        "if name in tools and run",
        ("test_the_requests_allowlist_narrows_the_agents_tools",),
    ),
    Removal(
        "E7",
        POLICY,
        " and run.requester.scopes.issuperset(tools[name].scopes)",
        "",
        ("test_a_tool_that_needs_a_scope_the_requester_lacks_is_neither_offered_nor_called",),
    ),
    Removal(
        "E7",
        "adapters/builtin_tools/arguments.py",
        "        if faults:\n",
        "        if not arguments and faults:\n",
        ("test_an_argument_the_schema_does_not_name_is_refused",),
    ),
    Removal(
        "D11",
        "adapters/postgres/migrations/0010_priority_order.sql",
        "                    ORDER BY e.vtime + (k - 1) * e.cost, e.tenant_id\n",
        "                    ORDER BY e.tenant_id\n",
        ("test_a_backlog_of_ten_thousand_delays_another_tenants_run_by_a_few",),
    ),
)
