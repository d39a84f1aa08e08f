"""Tools, and calls that go out for tenants."""

from typing import Final

from tests.controls.removal import Removal

EXCHANGE: Final = "adapters/egress/exchange.py"
GUARD: Final = "adapters/egress/guard.py"
COMMAND: Final = "adapters/process_tools/command.py"

REMOVALS: Final = (
    Removal(
        "S9",
        EXCHANGE,
        "httpx.URL(scheme=url.scheme, host=address, port",
        "httpx.URL(scheme=url.scheme, host=url.host, port",
        (
            "test_a_name_is_resolved_once_and_reached_where_that_led",
            "test_a_name_that_turns_to_loopback_after_its_first_answer_leads_nowhere",
        ),
    ),
    Removal(
        "S9",
        EXCHANGE,
        "    # No connection is kept: the pool",
        "    context.check_hostname = False\n    # No connection is kept: the pool",
        ("test_a_certificate_for_another_name_is_refused",),
    ),
    Removal(
        "I15",
        "adapters/egress/url.py",
        "|[a-zA-Z0-9.-]+)",
        "|[a-zA-Z0-9.\u212a-]+)",
        ("test_a_form_that_is_odd_in_itself_is_refused_whatever_it_resolves_to",),
    ),
    Removal(
        "I15",
        GUARD,
        "            if not named and not address_is_public(address, deny=self._rules.deny):\n",
        "            if not textual:\n",
        ("test_no_unsafe_url_reaches_the_canary", "test_no_unsafe_url_that_a_model_says_reaches_the_canary"),
    ),
    Removal(
        "I15",
        EXCHANGE,
        "            return await transport.handle_async_request(request)\n",
        "            async with httpx.AsyncClient(follow_redirects=True) as client:\n"
        "                return await client.get(str(request.url), headers=request.headers)\n",
        ("test_a_redirect_is_told_to_the_model_and_not_followed",),
    ),
    Removal(
        "I16",
        GUARD,
        "    if not host_is_allowed(url.host, entitled):\n",
        "    if not url.host:\n",
        (
            "test_a_tenant_goes_where_its_entitlements_say_from_the_next_call_on",
            "test_a_tenant_reaches_what_it_is_entitled_to_and_its_neighbour_does_not",
        ),
    ),
    Removal(
        "I17",
        COMMAND,
        "    kept = {name: environ[name] for name in _KEPT if environ.get(name)}\n",
        "    kept = dict(environ)\n",
        ("test_nothing_of_ours_reaches_it",),
    ),
    Removal(
        "I17",
        "adapters/process_tools/launch.py",
        "    os.closerange(3, lifeline)\n",
        "",
        ("test_nothing_of_ours_reaches_it",),
    ),
    Removal(
        "D18",
        COMMAND,
        "        self.kept += chunk[: self._limit - len(self.kept)]\n",
        "        self.kept += chunk\n",
        ("test_a_command_that_writes_without_end_neither_waits_nor_fills_the_memory",),
    ),
    Removal(
        "D18",
        "adapters/process_tools/port.py",
        "    if ended.size > tool.max_output_bytes:\n",
        "    if ended.size < 0:\n",
        ("test_an_output_over_the_limit_is_refused",),
    ),
    Removal(
        "D20",
        "adapters/egress/__init__.py",
        "        self._calls = Shares(MAX_CALLS_OF_A_TENANT)\n",
        "        self._calls = Shares(10_000)\n",
        ("test_a_tenant_whose_servers_are_silent_holds_up_nobody_else",),
    ),
    Removal(
        "D20",
        "adapters/egress/names.py",
        "        return await asyncio.shield(looking)\n",
        "        return await looking\n",
        ("test_a_tenant_whose_names_take_long_to_resolve_holds_up_nobody_else",),
    ),
    Removal(
        "T17",
        "stack_a/runs/execute.py",
        '        return StepResult(n=step.n, status="unknown", error=fault)\n',
        '        return StepResult(n=step.n, status="completed", output=None)\n',
        ("test_what_the_tool_does_not_know_an_operator_is_asked",),
    ),
    Removal(
        "T17",
        "adapters/process_tools/port.py",
        '    return {"tool": name, "key": key, **whose}\n',
        '    return {"tool": name, "key": os.urandom(8).hex(), **whose}\n',
        ("test_two_calls_with_one_key_have_the_effect_of_one",),
    ),
)
