"""What every Administration must show. Clauses: `ports.administration`."""

import hashlib
from datetime import timedelta
from typing import Final

import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.factories import STEP_STARTED, intent, new_run, telling
from conformance.harness import AdministrationHarness
from conformance.people import ACME, ACME_LAB, GLOBEX, NODE, PLATFORM
from ports.administration import MAX_ERASED_AT_ONCE, Administration
from ports.context import SCOPES, AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from ports.ids import KeyId, PrincipalId, RunId, TenantId, WorkerId
from ports.run_state import Change, Run, RunFilter, RunStatePort
from ports.tenant import Entitlements, NewKey, TenantDirectory

LEASE: Final = timedelta(hours=1)
ANN: Final = WorkerId("wrk_ann")
DIGEST: Final = hashlib.sha256(b"no secret").digest()
EXPORT: Final = "sha256:" + "e" * 64
NOBODY: Final = TenantId("tnt_nobody")
OTHERS: Final = replace(ACME, scopes=SCOPES - {"admin:platform"})


async def tenants_of(harness: AdministrationHarness) -> TenantDirectory:
    directory = await harness.directory()
    for tenant in (ACME.tenant, GLOBEX.tenant):
        await directory.create(PLATFORM, tenant, name=tenant, entitlements=Entitlements())
    return directory


async def held(runs: RunStatePort, auth: AuthContext = ACME) -> Run:
    """A run that a worker has, in the middle of a step."""
    await runs.renew(NODE, ANN, LEASE)
    run = (await runs.create(auth, new_run())).run
    run = await runs.claim(auth, run.id, ANN)
    await runs.append(auth, run.id, run.epoch, Change(steps=(intent(1),), events=(STEP_STARTED,)))
    return await runs.load(auth, run.id)


async def key_of(directory: TenantDirectory, auth: AuthContext) -> KeyId:
    new = NewKey(principal=PrincipalId("svc_shop"), scopes=frozenset({"runs:read"}), secret_sha256=DIGEST)
    return (await directory.issue_key(auth, new)).id


async def erase(port: Administration, tenant: TenantId = ACME.tenant, *, limit: int = 1_000) -> int:
    """All of it; how many rows that were."""
    removed = 0
    for _ in range(1_000):
        erased = await port.erase(PLATFORM, tenant, export_sha256=EXPORT, limit=limit)
        removed += erased.removed
        if erased.done:
            return removed
    raise AssertionError("erasing does not come to an end")


@pytest.mark.anyio
class AdministrationContract(Contract):
    @clause("ADM-1")
    async def test_nobody_but_the_platform_may(self, harness: AdministrationHarness) -> None:
        port, directory, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        run = (await runs.create(ACME, new_run())).run

        with pytest.raises(PermissionDenied):
            await port.kill(OTHERS, ACME.tenant, run.id, reason="mine")
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")
        await runs.cancel(ACME, run.id, reason="over")
        with pytest.raises(PermissionDenied):
            await port.erase(OTHERS, ACME.tenant, export_sha256=EXPORT, limit=1)
        with pytest.raises(PermissionDenied):
            await port.exported(OTHERS, ACME.tenant)

        assert (await runs.load(ACME, run.id)).status == "cancelled"
        assert (await directory.get(PLATFORM, ACME.tenant)).status == "disabled"

    @clause("ADM-2")
    async def test_a_held_run_ends_at_once(self, harness: AdministrationHarness) -> None:
        port, _, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        run = await held(runs)

        killed = await port.kill(PLATFORM, ACME.tenant, run.id, reason="runs wild")

        assert (killed.status, killed.worker) == ("cancelled", None)
        assert killed.finished_at is not None
        assert await runs.load(ACME, run.id) == killed
        [step] = await runs.steps(ACME, run.id, after=0, limit=10)
        assert step.status == "unknown"
        assert (await harness.event_types(ACME, run.id))[-1] == (killed.last_sequence, "run.cancelled")
        assert await harness.event_data(ACME, run.id, killed.last_sequence) == {"reason": "runs wild"}
        with pytest.raises(Conflict):
            await runs.append(ACME, run.id, run.epoch, telling("model.delta"))

    @clause("ADM-2")
    async def test_a_queued_run_ends_at_once(self, harness: AdministrationHarness) -> None:
        port, _, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        run = (await runs.create(ACME, new_run())).run

        killed = await port.kill(PLATFORM, ACME.tenant, run.id, reason="")

        assert killed.status == "cancelled"
        assert [one[1] for one in await harness.event_types(ACME, run.id)] == ["run.created", "run.cancelled"]

    @clause("ADM-3")
    async def test_a_run_that_is_over_stays_as_it_is(self, harness: AdministrationHarness) -> None:
        port, _, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        run = (await runs.create(ACME, new_run())).run
        over = await runs.cancel(ACME, run.id, reason="first")

        assert await port.kill(PLATFORM, ACME.tenant, run.id, reason="second") == over
        assert await runs.load(ACME, run.id) == over

    @clause("ADM-3")
    async def test_a_run_is_found_where_it_is(self, harness: AdministrationHarness) -> None:
        port, _, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        run = (await runs.create(ACME_LAB, new_run())).run

        for tenant, namespace in ((GLOBEX.tenant, "lab"), (ACME.tenant, "default"), (NOBODY, "lab")):
            with pytest.raises(NotFound):
                await port.kill(PLATFORM, tenant, run.id, reason="", namespace=namespace)
        with pytest.raises(NotFound):
            await port.kill(PLATFORM, ACME.tenant, RunId("run_x"), reason="")
        assert (await runs.load(ACME_LAB, run.id)).status == "queued"
        killed = await port.kill(PLATFORM, ACME.tenant, run.id, reason="", namespace="lab")
        assert killed.status == "cancelled"

    @clause("ADM-4")
    async def test_who_is_still_at_work_is_not_erased(self, harness: AdministrationHarness) -> None:
        port, directory, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        with pytest.raises(Conflict):
            await port.erase(PLATFORM, ACME.tenant, export_sha256=EXPORT, limit=10)
        run = await held(runs)
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")
        with pytest.raises(Conflict):
            await port.erase(PLATFORM, ACME.tenant, export_sha256=EXPORT, limit=10)

        assert (await directory.get(PLATFORM, ACME.tenant)).status == "disabled"
        assert (await runs.load(ACME, run.id)).status == "running"

    @clause("ADM-4")
    async def test_a_tenant_that_never_was_is_not_there(self, harness: AdministrationHarness) -> None:
        port = await harness.open()

        for tenant in (NOBODY, TenantId("no id")):
            with pytest.raises(NotFound):
                await port.erase(PLATFORM, tenant, export_sha256=EXPORT, limit=10)
        for limit in (0, MAX_ERASED_AT_ONCE + 1):
            with pytest.raises(InvalidArgument):
                await port.erase(PLATFORM, NOBODY, export_sha256=EXPORT, limit=limit)

    @clause("ADM-5")
    async def test_all_of_a_tenant_goes_in_batches(self, harness: AdministrationHarness) -> None:
        port, directory, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        key = await key_of(directory, ACME)
        made = [(await runs.create(ACME, new_run())).run for _ in range(3)]
        for run in made:
            await runs.cancel(ACME, run.id, reason="over")
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")

        first = await port.erase(PLATFORM, ACME.tenant, export_sha256=EXPORT, limit=2)
        rest = await erase(await harness.reopen(), limit=2)

        assert (first.removed, first.done) == (2, False)
        assert rest >= 3
        with pytest.raises(NotFound):
            await directory.get(PLATFORM, ACME.tenant)
        assert await directory.find_key(key, DIGEST) is None
        for run in made:
            with pytest.raises(NotFound):
                await runs.load(ACME, run.id)

    @clause("ADM-6")
    async def test_others_keep_what_is_theirs(self, harness: AdministrationHarness) -> None:
        port, directory, runs = await harness.open(), await tenants_of(harness), await harness.runs()
        key = await key_of(directory, GLOBEX)
        run = (await runs.create(GLOBEX, new_run())).run
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")

        await erase(port)

        assert (await directory.get(PLATFORM, GLOBEX.tenant)).status == "active"
        assert await directory.find_key(key, DIGEST) is not None
        assert await runs.load(GLOBEX, run.id) == run
        assert len((await runs.list_runs(GLOBEX, RunFilter(), limit=10)).items) == 1

    @clause("ADM-7")
    async def test_an_id_is_used_once(self, harness: AdministrationHarness) -> None:
        port, directory = await harness.open(), await tenants_of(harness)
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")
        await erase(port)

        assert await erase(port) == 0
        with pytest.raises(Conflict):
            await directory.create(PLATFORM, ACME.tenant, name="again", entitlements=Entitlements())
        with pytest.raises(NotFound):
            await directory.get(PLATFORM, ACME.tenant)

    @clause("ADM-8")
    async def test_the_export_of_the_first_call_is_kept(self, harness: AdministrationHarness) -> None:
        port, directory = await harness.open(), await tenants_of(harness)
        await directory.set_status(PLATFORM, ACME.tenant, "disabled")
        before = await port.exported(PLATFORM, ACME.tenant)

        await port.erase(PLATFORM, ACME.tenant, export_sha256=EXPORT, limit=1)
        await port.erase(PLATFORM, ACME.tenant, export_sha256="sha256:another", limit=10)

        assert before is None
        assert await port.exported(PLATFORM, ACME.tenant) == EXPORT
        assert await port.exported(PLATFORM, GLOBEX.tenant) is None
