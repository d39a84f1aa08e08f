"""What changes a tenant, an agent, a key or a run leaves one line in the audit, by the same transaction."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

import anyio
import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres import agent, audit, gateway_configuration, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import idempotency, intent, new_run
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from deploy.audit_check import checked
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.audit import READ
from ports.errors import AgentOSError
from ports.gateway_configuration import Draft
from ports.ids import AgentId, PrincipalId, WorkerId
from ports.policy import Policy, Rule
from ports.run_state import Change, Resolution, StepResult, step_key
from ports.tenant import Entitlements, NewKey
from tests.support.postgres import Clone, cloned, execute, fetch

AGENT: Final = AgentSpec(id=AgentId("agt_noted"), model="demo-1")
KEY: Final = NewKey(principal=PrincipalId("usr_zoe"), scopes=frozenset({"runs:read"}), secret_sha256=b"s" * 32)


@pytest.mark.anyio
class TestAudit:
    @pytest.fixture
    async def clone(self) -> AsyncIterator[Clone]:
        async with cloned() as clone:
            yield clone

    async def test_each_change_leaves_one_line_and_a_repeat_none(self, clone: Clone) -> None:
        config, given = PostgresConfig(dsn=clone.control), Given(clock=SystemClock())
        async with AsyncExitStack() as stack:
            tenants = await stack.enter_async_context(tenant.SPEC.open(config, given))
            agents = await stack.enter_async_context(agent.SPEC.open(config, given))
            runs = await stack.enter_async_context(run_state.SPEC.open(config, given))
            await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=Entitlements())
            await agents.publish(ACME, AGENT)
            await agents.publish(ACME, AGENT)
            key = await tenants.issue_key(ACME, KEY)
            await tenants.revoke_key(ACME, key.id)
            await tenants.revoke_key(ACME, key.id)
            new = new_run()
            run = (await runs.create(ACME, new)).run
            await runs.create(ACME, new)
            await runs.renew(NODE, WorkerId("wrk_audit"), timedelta(hours=1))
            await runs.claim(ACME, run.id, WorkerId("wrk_audit"))
            await runs.cancel(ACME, run.id, reason="x")
            await runs.cancel(ACME, run.id, reason="x")
            forked = (await runs.fork(ACME, run.id, 0, forking := idempotency())).run
            await runs.fork(ACME, run.id, 0, forking)
            parked = await runs.claim(ACME, forked.id, WorkerId("wrk_audit"))
            facts = (intent(1), StepResult(n=1, status="unknown"))
            await runs.append(ACME, parked.id, parked.epoch, Change(steps=facts, status="needs_operator"))
            decision, deciding = Resolution(decision="retry"), idempotency()
            await runs.resolve(ACME, parked.id, 1, decision, deciding)
            await runs.resolve(ACME, parked.id, 1, decision, deciding)
            for status in ("disabled", "disabled", "active"):
                await tenants.set_status(PLATFORM, ACME.tenant, status)
            for weight in (1, 2, 2):
                await tenants.set_entitlements(PLATFORM, ACME.tenant, Entitlements(weight=weight))

        rows = await fetch(clone.admin, "SELECT * FROM audit_log ORDER BY id")
        assert [(row["action"], row["subject"]) for row in rows] == [
            ("tenant.create", ACME.tenant),
            ("agent.publish", "agt_noted@1"),
            ("key.issue", key.id),
            ("key.revoke", key.id),
            ("run.create", run.id),
            ("run.cancel", run.id),
            ("run.fork", forked.id),
            ("step.resolve_retry", step_key(forked.id, 1)),
            ("tenant.disable", ACME.tenant),
            ("tenant.enable", ACME.tenant),
            ("tenant.entitle", ACME.tenant),
        ]
        assert {row["tenant_id"] for row in rows} == {ACME.tenant}
        assert [row["actor_tenant"] for row in rows].count(PLATFORM.tenant) == 4
        assert {row["principal"] for row in rows} == {ACME.principal, PLATFORM.principal}
        assert rows[1]["correlation_id"] == ACME.trace.correlation_id

    async def test_a_policy_that_changes_is_noted_with_its_version(self, clone: Clone) -> None:
        """Which rules held when can be told, and a change of anything else is no change of them."""
        one, two = (Policy(rules=(Rule(id=name, effect="deny"),)) for name in ("one", "two"))
        config, given = PostgresConfig(dsn=clone.control), Given(clock=SystemClock())
        async with tenant.SPEC.open(config, given) as tenants:
            await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=Entitlements())
            for policy in (Policy(), one, one, two, Policy()):
                for weight in (1, 2):
                    changed = Entitlements(policy=policy, weight=weight)
                    await tenants.set_entitlements(PLATFORM, ACME.tenant, changed)

        rows = await fetch(clone.admin, "SELECT * FROM audit_log WHERE action = 'tenant.policy' ORDER BY id")
        versions = [one.version, two.version, "none"]
        assert [row["subject"] for row in rows] == [f"{ACME.tenant}@{version}" for version in versions]

    async def test_what_can_not_be_noted_does_not_happen(self, clone: Clone) -> None:
        await execute(clone.owner, "REVOKE INSERT ON agentos.audit_log FROM ao_app")
        config, given = PostgresConfig(dsn=clone.app), Given(clock=SystemClock())
        async with run_state.SPEC.open(config, given) as runs:
            with pytest.raises(AgentOSError):
                await runs.create(ACME, new_run())

        assert await fetch(clone.admin, "SELECT 1 FROM runs UNION ALL SELECT 1 FROM idempotency") == []

    async def test_a_change_of_the_gateway_leaves_one_line_and_a_repeat_none(self, clone: Clone) -> None:
        async with gateway_configuration.SPEC.open(
            PostgresConfig(dsn=clone.control), Given(clock=SystemClock())
        ) as configurations:
            draft = Draft(document={}, digest="d")
            for _ in range(2):
                await configurations.put(PLATFORM, draft, if_match=0, key="k")
                await configurations.restore(PLATFORM, 1, comment="", if_match=None, key="r")

        rows = await fetch(clone.admin, "SELECT * FROM audit_log ORDER BY id")
        assert [(row["action"], row["subject"]) for row in rows] == [
            ("gateway.configure", "gateway_configuration@1"),
            ("gateway.restore", "gateway_configuration@2"),
        ]
        assert {(row["tenant_id"], row["principal"]) for row in rows} == {(PLATFORM.tenant, PLATFORM.principal)}

    async def test_a_change_of_the_gateway_that_can_not_be_noted_does_not_happen(self, clone: Clone) -> None:
        await execute(clone.owner, "REVOKE INSERT ON agentos.audit_log FROM ao_def")
        async with gateway_configuration.SPEC.open(
            PostgresConfig(dsn=clone.control), Given(clock=SystemClock())
        ) as configurations:
            with pytest.raises(AgentOSError):
                await configurations.put(PLATFORM, Draft(document={}, digest="d"), if_match=None, key="k")

            assert await configurations.current(PLATFORM) is None

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE agentos.audit_log SET action = 'x'",
            "DELETE FROM agentos.audit_log",
            "TRUNCATE agentos.audit_log",
            "INSERT INTO agentos.audit_chain VALUES ('tnt_acme', 1, gen_random_uuid(), sha256('x'))",
            "UPDATE agentos.audit_chain SET seq = seq",
            "DELETE FROM agentos.audit_chain",
            "UPDATE agentos.audit_heads SET seq = seq",
            "DELETE FROM agentos.audit_heads",
            "ALTER TABLE agentos.audit_log DISABLE TRIGGER linked",
            "SET session_replication_role = replica",
            "SELECT agentos.ao_audit_link()",
        ],
    )
    async def test_the_audit_can_not_be_changed_by_services_or_people(self, clone: Clone, change: str) -> None:
        for dsn in (clone.app, clone.admin):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(dsn, change)

    async def test_what_several_transactions_note_at_once_is_one_chain_per_tenant(self, clone: Clone) -> None:
        """Those that note for two tenants in opposite orders, and after their other work, included."""
        insert = (
            "INSERT INTO agentos.audit_log "
            "(tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id) "
            "SELECT t, 'default', t, 'usr_ann', 'thing.do', '', '' FROM unnest(ARRAY[{}]) t"
        )
        both = ("'tnt_acme', 'tnt_globex'", "'tnt_acme', 'tnt_globex', 'tnt_acme'")
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(execute, clone.superuser, insert.format(both[n % 2]))

        config, given = PostgresConfig(dsn=clone.app), Given(clock=SystemClock())
        async with audit.SPEC.open(config, given) as log:
            for auth, many in ((ACME, 30), (GLOBEX, 20)):
                reader = replace(auth, scopes=frozenset({READ}))
                verdict = await checked(log, reader, auth.tenant, {})
                assert (verdict.bad, verdict.checked) == (None, many)

    async def test_a_transaction_that_is_given_up_takes_no_number(self, clone: Clone) -> None:
        noting = (
            "INSERT INTO agentos.audit_log "
            "(tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id) "
            "VALUES ('tnt_acme', 'default', 'tnt_acme', 'usr_ann', '{}', '', '');"
        )
        given_up = f"BEGIN; {noting.format('given.up')} ROLLBACK;"
        savepoints = (
            f"BEGIN; {noting.format('one')} SAVEPOINT s; {noting.format('gone')} ROLLBACK TO s; "
            f"SAVEPOINT t; {noting.format('two')} RELEASE t; {noting.format('three')} COMMIT;"
        )
        for statements in (given_up, savepoints):
            await execute(clone.superuser, statements)

        rows = await fetch(
            clone.admin,
            "SELECT c.seq, a.action FROM audit_chain c JOIN audit_log a ON a.tenant_id = c.tenant_id AND a.id = c.entry "
            "ORDER BY c.seq",
        )
        assert [row["seq"] for row in rows] == [1, 2, 3]
        # What a savepoint held comes behind what was noted outside of one.
        assert {row["action"] for row in rows} == {"one", "two", "three"}

    async def test_a_traced_request_is_named(self, clone: Clone) -> None:
        asker = ACME.traced(replace(ACME.trace, correlation_id="corr-42"))
        async with run_state.SPEC.open(PostgresConfig(dsn=clone.app), Given(clock=SystemClock())) as runs:
            await runs.create(asker, new_run())

        rows = await fetch(clone.admin, "SELECT correlation_id FROM audit_log")
        assert [row["correlation_id"] for row in rows] == ["corr-42"]
