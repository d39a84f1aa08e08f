"""The phases that bring a node up: boot, migrate, seed, wire. Each looks first, so that a second run changes nothing."""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final

from adapters.postgres.maintenance import make_event_days
from adapters.postgres.migrate import migrate
from deploy import config as settings
from deploy import credentials, embedded_postgres
from deploy.action import Failed, Recorder
from deploy.catalogue import Service, layout_of, successor
from deploy.credentials import write_if_changed
from deploy.embedded_postgres import SUPERUSER
from deploy.handover import keeper
from deploy.health import Health, probe
from deploy.homes import prepare_homes
from deploy.internal import open_directory
from deploy.node import write_private
from deploy.preflight import preflight
from deploy.processes import end, processes_of
from deploy.report import Check, Seeded
from deploy.seed import SeedResult, ensure_issuer_key, seed_demo
from deploy.supervision import Applied, Supervisor

HEALTHY_SECONDS: Final = 60.0
# A service that keeps dying this long will not come good by waiting.
_CRASHING_SECONDS: Final = 8.0
_POLL_SECONDS: Final = 0.15


def check_machine(recorder: Recorder, services: tuple[Service, ...], flags: Mapping[str, str] | None = None) -> None:
    with recorder.phase("preflight") as notes:
        found = [recorder.check(check) for check in preflight(recorder.node, services, flags or {})]
        failed = [check for check in found if not check.ok]
        if failed:
            raise Failed(failed[0])
        notes.summary = f"{len(found)} checks passed"


def remember_flags(recorder: Recorder, flags: Mapping[str, str]) -> None:
    """Write `.agentos.env` the first time; later, set what the flags say, so that every command sees the same node."""
    path = recorder.node.env_file
    if not path.exists():
        write_private(path, settings.render_file(flags))
        recorder.note(f"wrote {path}: every setting, with its default")
        return
    changed = {
        field: value for field, value in flags.items() if settings.parse_file(path).get(field, ("",))[0] != value
    }
    if changed:
        write_private(path, settings.updated_file(path.read_text(encoding="utf-8"), changed))
        recorder.note(f"remembered in {path.name}: {', '.join(settings.key_of(field) for field in changed)}")


def boot(
    recorder: Recorder,
    services: tuple[Service, ...],
    environ: Mapping[str, str],
    supervisor: Supervisor,
    *,
    spare: Collection[str] = (),
) -> Applied:
    """The directories, the generated secrets, the supervisor and the database.

    Services with other settings than they run with are stopped, but for those in `spare`.
    """
    node, config = recorder.node, recorder.config
    with recorder.phase("boot") as notes:
        done: list[str] = []
        if not supervisor.alive() and (strays := processes_of(node)):
            end(strays)
            done.append(f"ended {len(strays)} processes that an earlier supervisor left behind")
        node.create()
        embedded = not config.database_url
        passwords = credentials.database_passwords(node) if embedded else None
        if passwords is not None:
            if not layout_of(node).data.exists():
                recorder.progress.milestone("making the database cluster")
                done.append("made the database cluster")
            embedded_postgres.prepare(layout_of(node), superuser_password=passwords.superuser)
            credentials.write_embedded_urls(node, passwords, config.postgres_port)
        else:
            _write_external_urls(recorder, environ)
        credentials.ensure_placeholder_key(node)
        credentials.ensure_record_keys(node)
        credentials.ensure_audit_key(node)
        if ensure_issuer_key(node):
            done.append("made the signing key")
        if supervisor.start_daemon(services, environ):
            done.append("started the supervisor")
        # Who was left standing in for a service by a redeploy that failed may be all that serves it: it goes on.
        stood_in = standing_in(services, supervisor)
        applied = supervisor.apply((*services, *stood_in), spare=(*spare, *(one.name for one in stood_in)))
        if applied.changed or applied.removed:
            done.append(f"new settings for {', '.join((*applied.changed, *applied.removed))}")
        database = tuple(service for service in services if service.name == "postgres")
        if database and supervisor.start("postgres"):
            done.append("started PostgreSQL")
        wait_healthy(recorder, database, supervisor, what="database ready")
        notes.changed = bool(done)
        notes.summary = "; ".join(done) or "nothing to do"
    return applied


def migrate_database(recorder: Recorder, environ: Mapping[str, str]) -> None:
    node, config = recorder.node, recorder.config
    with recorder.phase("migrate") as notes:
        owner_url = node.secret(credentials.OWNER_URL).read_text(encoding="utf-8").strip()
        if config.database_url:
            applied = asyncio.run(migrate(owner_url))
        else:
            passwords = credentials.database_passwords(node)
            admin = credentials.embedded_url(SUPERUSER, passwords.superuser, config.postgres_port, SUPERUSER)
            applied = embedded_postgres.set_up_database(admin, owner_url, passwords.roles())
        asyncio.run(make_event_days(owner_url))
        applied += prepare_homes(node, config, environ)
        notes.changed = bool(applied)
        notes.summary = f"applied {len(applied)}: {', '.join(applied)}" if applied else "the schema is up to date"


def seed(recorder: Recorder) -> Seeded | None:
    with recorder.phase("seed") as notes:
        if recorder.config.mode == "prod":
            notes.summary = "prod seeds nothing; make a tenant with ./agentos tenant create tnt_<name> --admin-key"
            return None
        result = asyncio.run(_seed(recorder))
        notes.changed = bool(result.made)
        notes.summary = f"made {', '.join(result.made)}" if result.made else f"{result.seeded.tenant_id} is complete"
        return result.seeded


def wire(recorder: Recorder, services: tuple[Service, ...], supervisor: Supervisor) -> None:
    """Start every service that does not run, in order, and wait until all are healthy."""
    with recorder.phase("wire") as notes:
        started = [service.name for service in services if supervisor.start(service.name)]
        wait_healthy(recorder, services, supervisor)
        if standing_in(services, supervisor):
            supervisor.apply(services)
        notes.changed = bool(started)
        healthy = f"services healthy {len(services)}/{len(services)}"
        notes.summary = f"{healthy}; started {', '.join(started)}" if started else f"{healthy}; all ran already"


def standing_in(services: tuple[Service, ...], supervisor: Supervisor) -> tuple[Service, ...]:
    """Who was left to serve in the place of a service, by a redeploy that failed or was killed."""
    states = supervisor.states()
    left = (successor(service) for service in services if service.handover is not None)
    return tuple(one for one in left if one.name in states)


def rolled(services: tuple[Service, ...]) -> tuple[Service, ...]:
    """What a redeploy restarts."""
    return tuple(service for service in services if service.name != "postgres")


def roll(recorder: Recorder, services: tuple[Service, ...], supervisor: Supervisor) -> None:
    """Restart every service but the database, one at a time, each only after the one before is healthy again."""
    new = rolled(services)
    with recorder.phase("restart") as notes:
        for number, service in enumerate(new, start=1):
            what = f"restarted {number}/{len(new)}, healthy"
            if probe(service).ok and service.handover is not None and keeper(service.handover) is not None:
                _hand_over(recorder, service, services, supervisor, what=what)
            else:
                # Nothing is lost by stopping it first: it serves nobody, or nobody from outside.
                supervisor.renew(service)
                wait_healthy(recorder, (service,), supervisor, what=what)
        notes.changed = True
        notes.summary = f"restarted {', '.join(service.name for service in new)}"


def _hand_over(
    recorder: Recorder, service: Service, services: tuple[Service, ...], supervisor: Supervisor, *, what: str
) -> None:
    """Restart a service without a moment in which nobody listens: another process stands in for it meanwhile.

    When that one does not become ready, the service goes on as it was.
    """
    other, left = successor(service), standing_in(services, supervisor)
    beside = (*services, *(one for one in left if one.name != other.name))
    spare = {one.name for one in (*rolled(services), *left)}
    if not _serves(other, supervisor):
        supervisor.apply(beside, spare=spare)
        _stand_in(recorder, other, beside, supervisor, spare=spare)
    # Else it is there already, since an earlier redeploy failed, and may be the only one that serves.
    supervisor.renew(service)
    # Should it fail now, the other one is left, and serves until an `up` or a `redeploy` has brought the service back.
    wait_healthy(recorder, (service,), supervisor, what=what)
    supervisor.apply(beside, spare=spare)


def _serves(service: Service, supervisor: Supervisor) -> bool:
    """Whether it is the one that keeps its door."""
    state = supervisor.states().get(service.name)
    who = keeper(service.handover) if service.handover is not None else None
    return state is not None and who is not None and who.pid == state.pid


def _stand_in(
    recorder: Recorder, one: Service, beside: tuple[Service, ...], supervisor: Supervisor, *, spare: Collection[str]
) -> None:
    supervisor.apply((*beside, one), spare=spare)
    try:
        supervisor.start(one.name)
        wait_healthy(recorder, (one,), supervisor, what="standing in")
    except BaseException:
        supervisor.apply(beside, spare=spare)
        raise


def wait_healthy(
    recorder: Recorder,
    services: tuple[Service, ...],
    supervisor: Supervisor,
    *,
    what: str = "services healthy",
    seconds: float = HEALTHY_SECONDS,
) -> None:
    """Wait until all are ready, telling each as it gets there.

    Raises:
        Failed: one is not within the time, or it keeps dying; with the end of its log.
    """
    waiting = {service.name: service for service in services}
    last: dict[str, Health] = {}
    end_at = time.monotonic() + seconds
    # When each was first seen dead or died, and when last.
    dying: dict[str, tuple[float, float]] = {}
    pids: dict[str, int] = {}
    while waiting:
        for name, service in list(waiting.items()):
            last[name] = _probe_itself(service, supervisor)
            if last[name].ok:
                del waiting[name]
                recorder.progress.milestone(f"{what} {len(services) - len(waiting)}/{len(services)} ({name})")
        if not waiting:
            return
        now = time.monotonic()
        states = supervisor.states()
        for name in waiting:
            # Who lives long enough to count as started is started again at once, and is seen dead by its pid only.
            pid = states[name].pid
            died = pid != pids.get(name, pid)
            if pid:
                pids[name] = pid
            if died or states[name].state in {"backoff", "exited", "fatal"}:
                dying[name] = (dying.get(name, (now, now))[0], now)
            elif states[name].uptime_s >= _CRASHING_SECONDS:
                dying.pop(name, None)
            # Who has died once, and takes long to begin again, is waited for.
            first, latest = dying.get(name, (now, now))
            if now > end_at or latest - first > _CRASHING_SECONDS:
                state = states[name]
                raise Failed(unhealthy(recorder, last[name], f"{state.state} {state.remark}".strip()))
        time.sleep(_POLL_SECONDS)


def _probe_itself(service: Service, supervisor: Supervisor) -> Health:
    """As `probe`, but not content with the answer of another process that serves the same address."""
    health = probe(service)
    if not health.ok or service.handover is None:
        return health
    who = keeper(service.handover)
    if who is None or who.pid == supervisor.states()[service.name].pid:
        return health
    detail = f"process {who.pid} still serves its address; it has not taken over yet"
    return Health(service=service.name, ok=False, detail=detail, ms=health.ms)


def unhealthy(recorder: Recorder, health: Health, state: str) -> Check:
    """The failed check of a service that is not ready."""
    return Check(
        name=f"{health.service} is ready",
        part=health.service,
        ok=False,
        ms=health.ms,
        detail=f"{health.detail} (process: {state})",
        log_tail=recorder.log_tail(health.service),
        next_command=f"./agentos logs {health.service}",
    )


async def _seed(recorder: Recorder) -> SeedResult:
    async with open_directory(recorder.node) as directory:
        return await seed_demo(recorder.node, directory, recorder.config)


def _write_external_urls(recorder: Recorder, environ: Mapping[str, str]) -> None:
    """The services read addresses from files, so that a password never stands in an environment."""
    node, config = recorder.node, recorder.config
    for field, name in (
        ("database_url", credentials.APP_URL),
        ("database_owner_url", credentials.OWNER_URL),
        ("database_control_url", credentials.CONTROL_URL),
    ):
        reference = getattr(config, field)
        url = settings.dereference(reference, environ)
        if not url:
            detail = f"{settings.key_of(field)}={reference} leads nowhere"
            remedy = "set it in the environment, or write the file, then ./agentos up"
            raise Failed(Check(name="database address", part="postgres", ok=False, detail=detail, next_command=remedy))
        write_if_changed(node.secret(name), url)
