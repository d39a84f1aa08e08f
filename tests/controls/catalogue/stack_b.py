"""Stack B: models and money."""

from typing import Final

from tests.controls.removal import Removal

ESTIMATE: Final = "stack_b/budget/estimate.py"
ROUTER: Final = "stack_b/routing/router.py"
PARSE: Final = "stack_b/http/parse.py"
RECORDER: Final = "stack_b/records/recorder.py"
POLICY: Final = "stack_b/policy.py"
MEDIA: Final = "stack_b/redaction/media.py"
STEPS: Final = "stack_b/steps.py"
TEXT: Final = "stack_b/policies/text.py"
ONCE: Final = "stack_b/once.py"
CONNECTION: Final = "stack_b/backends/connection.py"

REMOVALS: Final = (
    Removal(
        "T8",
        PARSE,
        "    if NEVER.isdisjoint(value):\n",
        "    if value:\n",
        ("test_no_surface_lets_a_client_steer_or_widen",),
    ),
    Removal(
        "T8",
        ESTIMATE,
        "            if not 0 <= tokens <= ask.max_tokens:\n",
        "            if tokens < 0:\n",
        ("test_no_more_may_be_thought_than_may_be_written",),
    ),
    Removal(
        "T8",
        ROUTER,
        "        able = tuple(one for one in candidates if self._passes(one).issuperset(extra))\n",
        "        able = candidates\n",
        ("test_what_nobody_is_known_to_take_is_refused_by_name",),
    ),
    Removal(
        "T8",
        "stack_b/members.py",
        '"temperature", "tool_choice", "tools", "top_logprobs"',
        '"temperature", "tools", "top_logprobs"',
        ("test_whatever_the_official_clients_may_say_is_decided",),
    ),
    Removal(
        "T8",
        "stack_b/routing/choice.py",
        "    return ALL_MODELS in entitlements.models or model in entitlements.models\n",
        "    return bool(model)\n",
        ("test_a_canary_is_no_way_to_a_model_the_tenant_may_not_use", "test_a_rule_holds_at_a_route"),
    ),
    Removal(
        "T8",
        ROUTER,
        "            if permits_backend(entitlements, one.backend.name)\n",
        "            if one.backend.name\n",
        ("test_is_no_fallback",),
    ),
    Removal(
        "T9",
        TEXT,
        '    found = canonical_form(text, "composed").text\n',
        "    found = text\n",
        ("test_a_keyword_is_found_however_it_is_written", "test_a_keyword_is_found"),
    ),
    Removal(
        "T9",
        "stack_b/policies/answer.py",
        "        upto = len(reading.text) - held\n",
        "        upto = len(reading.text)\n",
        ("test_wherever_a_text_is_cut_the_same_goes_out",),
    ),
    Removal(
        "E8",
        "stack_b/policies/strings.py",
        "    yield from kinds\n    if isinstance(tool, dict):\n        yield from _named(tool)\n",
        "    yield from kinds\n",
        ("test_a_function_inside_of_a_tool_is_offered_too", "test_what_is_offered_or_forced_has_a_name"),
    ),
    Removal(
        "E8",
        PARSE,
        "        more += tuple(dict.fromkeys(tool_kind(kind) for tool in tools for kind in kinds_in(tool)))\n",
        "",
        (
            "test_tools_that_the_provider_runs_are_passed_on_only_where_the_operator_says_so",
            "test_a_tool_that_the_provider_runs_needs_no_type_to_be_one",
        ),
    ),
    Removal(
        "R2",
        RECORDER,
        "        self.writer.note(trail.auth, Written(record=of_success(trail, call)))\n",
        "        return\n",
        ("test_says_who_asked_what_and_what_it_cost",),
    ),
    Removal(
        "R2",
        RECORDER,
        "            await self.writer.denied(trail.auth, written)\n",
        "",
        ("test_a_denial_is_in_the_audit_when_it_is_told",),
    ),
    Removal(
        "R2",
        RECORDER,
        "            reasons=outcome.reasons,\n        )\n        await self.writer.denied(auth, Written(record=record))\n",
        "            reasons=outcome.reasons,\n        )\n        self.writer.note(auth, Written(record=record))\n",
        ("test_what_a_policy_denies_is_in_the_audit_when_it_is_told",),
    ),
    Removal(
        "I3",
        POLICY,
        "        value=rewritten(value, replacements, numbers),\n",
        "        value=value,\n",
        (
            "test_no_value_leaks_in_any_form_at_any_cut_and_clean_text_stays",
            "test_a_canary_in_any_string_of_a_request_does_not_go_upstream",
            "test_no_surface_passes_it_in_any_disguise",
            "test_no_place_of_a_request_passes_it",
        ),
    ),
    Removal(
        "I3",
        "adapters/regex_pii/detector.py",
        "    canonical = canonical_form(text)\n",
        '    canonical = canonical_form("")\n    canonical.text = text\n',
        ("test_it_is_found_with_all_of_its_disguise",),
    ),
    Removal(
        "I3",
        POLICY,
        "        for span in await detector.detect(auth, text):\n"
        '            if rules.mode(span.kind) != "allow":\n'
        "                return False\n",
        "        try:\n"
        "            found = await detector.detect(auth, text)\n"
        "        except Exception:\n"
        "            continue\n"
        '        if any(rules.mode(span.kind) != "allow" for span in found):\n'
        "            return False\n",
        ("test_when_the_detector_is_away_nothing_is_sent",),
    ),
    Removal(
        "I4",
        "stack_b/backends/reach.py",
        "        if ANY not in self.classifications and context.classification not in self.classifications:\n"
        "            return False\n",
        "",
        ("test_a_secret_goes_nowhere_that_does_not_say_it_may",),
    ),
    Removal(
        "I4",
        "stack_b/backends/reach.py",
        "(bool(self.regions) and self.regions <= regions)",
        "bool(self.regions & regions)",
        ("test_every_region_of_a_backend_must_be_permitted",),
    ),
    Removal(
        "T10",
        ONCE,
        '    owner = hashlib.sha256(auth.principal.encode("utf-8", "surrogatepass")).hexdigest()[:_OWNER_CHARS]\n',
        '    owner = hashlib.sha256(auth.tenant.encode("utf-8", "surrogatepass")).hexdigest()[:_OWNER_CHARS]\n',
        (
            "test_whoever_comes_first_with_anothers_key_has_used_up_nothing",
            "test_a_colleague_ends_nothing_and_who_tried_is_noted",
            "test_a_step_of_another_principal_is_another_call",
        ),
    ),
    Removal(
        "T10",
        STEPS,
        "            self._pipeline.recorder.told_to_end(auth, route, aborted=aborted)\n",
        "            pass\n",
        ("test_a_colleague_ends_nothing_and_who_tried_is_noted",),
    ),
    Removal(
        "I5",
        "stack_b/anew.py",
        "        ruled = await self.permitted(auth, call)\n",
        "        if reply:\n            return reply\n        ruled = await self.permitted(auth, call)\n",
        (
            "test_who_may_not_ask_any_more_gets_no_reply_that_is_there",
            "test_what_may_not_be_answered_any_more_is_held_back_from_a_replay",
        ),
    ),
    Removal(
        "I6",
        STEPS,
        "    return (auth.tenant, auth.namespace, once.key)\n",
        '    return (TenantId(""), auth.namespace, once.key.partition("/")[0])\n',
        ("test_another_tenant_aborts_nothing",),
    ),
    Removal(
        "I7",
        RECORDER,
        "self._vault.seal(trail.auth.tenant, CONTENT, record.id, msgspec.json.encode(decision.value))",
        "msgspec.json.encode(decision.value)",
        ("test_no_table_has_a_text_or_a_secret_in_clear",),
    ),
    Removal(
        "I7",
        "stack_b/kept_texts.py",
        "    return None if wanted is None else Texts(timedelta(days=wanted.retention_days), prompt)\n",
        "    return Texts(timedelta(days=1 if wanted is None else wanted.retention_days), prompt)\n",
        ("test_are_nowhere_unless_the_tenant_asks",),
    ),
    Removal(
        "I8",
        "stack_b/backends/openai_compatible.py",
        "        told |= _identifiers(refused)\n",
        '        told |= _identifiers(refused) | {"upstream_text": refused}\n',
        ("test_a_refusal_that_quotes_the_key_is_not_passed_on",),
    ),
    Removal(
        "D13",
        ESTIMATE,
        "(UNREAD_TOKENS if _is_unread(call.members) else 0)",
        "0",
        ("test_a_part_that_is_not_understood_holds_as_much_as_a_model_reads",),
    ),
    Removal(
        "D14",
        "ports/budget_rules.py",
        "        return self.account.budget.limit - self.settled - self.held\n",
        "        return self.account.budget.limit - self.settled\n",
        ("test_a_hundred_callers_at_the_limit_get_exactly_what_fits",),
    ),
    Removal(
        "D15",
        "stack_b/redaction/weight.py",
        "    if weight > limit and (found := _weight(value, media=False)) > limit:\n",
        "    if weight < 0 and (found := _weight(value, media=False)) > limit:\n",
        (
            "test_as_much_as_the_limit_is_taken_and_no_more",
            "test_a_body_that_is_too_long_to_look_through_is_refused_at_once",
        ),
    ),
    Removal(
        "D15",
        "stack_b/redaction/spans.py",
        "    number = last.get(name, 1) + 1\n",
        "    number = 2\n",
        ("test_as_many_names_as_fit_that_become_one_are_numbered_in_no_time",),
    ),
    Removal(
        "D15",
        "stack_b/redaction/parts.py",
        "        at = bisect_right(ends, span.start)\n",
        "        at = sum(end <= span.start for end in ends)\n",
        ("test_as_many_parts_as_fit_with_something_in_each_are_compared_in_no_time",),
    ),
    Removal(
        "I9",
        MEDIA,
        "len(text) <= _SHORTEST or not _may_hold(place) or ",
        "len(text) <= _SHORTEST or ",
        ("test_what_looks_like_media_is_a_text_wherever_media_do_not_stand",),
    ),
    Removal(
        "I9",
        MEDIA,
        "    if SIGNATURES.match(binascii.a2b_base64(payload[:_FIRST])) is None:\n        return False\n",
        "",
        ("test_what_stands_where_media_do_and_does_not_begin_like_them_is_a_text",),
    ),
    Removal(
        "I9",
        MEDIA,
        "    return textual(payload[:_HEAD], kind) is None or textual(payload, kind) is None\n",
        "    return bool(kind)\n",
        ("test_a_file_that_begins_like_a_document_and_is_a_text_is_read",),
    ),
    Removal(
        "I9",
        MEDIA,
        "    return place == _SPOKEN or ",
        "    return place[-1:] == _SPOKEN[-1:] or ",
        ("test_a_models_own_voice_is_left_alone_where_it_stands_and_nowhere_else",),
    ),
    Removal(
        "D16",
        CONNECTION,
        "        self._over, self._next_s = now + patience.whole, patience.next\n",
        "        self._over, self._next_s = _NEVER, _NEVER\n",
        ("test_one_that_stalls_is_given_up_and_left",),
    ),
    Removal(
        "D16",
        CONNECTION,
        "        self.whole, self.room = True, limit\n",
        "        self.whole, self.room = True, 1000 * limit\n",
        ("test_a_huge_body_is_left_at_the_limit",),
    ),
    Removal(
        "D16",
        "stack_b/routing/breaker.py",
        "        if failures >= MIN_FAILURES and failures >= FAILURE_SHARE * len(self._failed):\n",
        "        if failures < 0:\n",
        ("test_it_opens_when_half_of_the_last_calls_failed_and_not_before",),
    ),
    Removal(
        "I6",
        ONCE,
        '    text = f"{auth.principal}\\0{route}\\0{key}"\n',
        '    text = f"\\0{route}\\0{key}"\n',
        ("test_a_stranger_with_the_same_request_joins_nothing",),
    ),
    Removal(
        "I6",
        "stack_b/flights.py",
        "    return (auth.tenant, auth.namespace, auth.principal, route)\n",
        '    return (auth.tenant, auth.namespace, PrincipalId(""), route)\n',
        ("test_a_stranger_with_the_same_request_joins_nothing",),
    ),
    Removal(
        "I6",
        "stack_b/flights.py",
        "    return (auth.tenant, auth.namespace, auth.principal, route)\n",
        '    return (auth.tenant, "", auth.principal, route)\n',
        ("test_a_stranger_with_the_same_request_joins_nothing",),
    ),
    Removal(
        "I6",
        "adapters/inproc/reply_journal.py",
        "    return (auth.tenant, auth.namespace, key)\n",
        '    return (TenantId(""), auth.namespace, key)\n',
        ("test_another_tenants_same_key_is_another_call",),
    ),
    Removal(
        "D14",
        "adapters/postgres/sql/budget.sql",
        "    settled = w.settled + CASE w.unit WHEN 'tokens' THEN sums.lapsed_tokens ELSE sums.lapsed_nanousd END\n",
        "    settled = w.settled\n",
        ("test_a_hold_with_a_checkpoint_lapses_at_it",),
    ),
    Removal(
        "I7",
        "stack_b/entries.py",
        '        return {"sealed": base64.b64encode(sealed).decode()}\n',
        "        return outcome if sealed else None\n",
        ("test_no_table_has_a_text_or_a_secret_in_clear",),
    ),
)
