"""One action of the operator (`up`, `redeploy`, `validate`, `nuke`): phases with timings, and a report at the end of each.

An action that fails still writes its report. Only one that changes the node may run at a time.
"""

import fcntl
import os
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from deploy import credentials, report
from deploy.config import Config
from deploy.health import tail
from deploy.node import Node
from deploy.progress import Progress
from deploy.report import Action, Check, Phase, Report, Written
from ports.errors import AgentOSError, Conflict

LOG_LINES: Final = 12

# What the machine may throw at us below the ports; each is told with the phase it happened in.
_MACHINE_ERRORS: Final = (OSError, subprocess.SubprocessError, xmlrpc.client.Error, msgspec.MsgspecError)


class Failed(Exception):
    """A check that must hold does not; the action ends here."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.detail)
        self.check = check


class PhaseNotes:
    """What a phase has to say about itself once it is over."""

    def __init__(self) -> None:
        self.changed = False
        self.summary = ""


class Recorder:
    """Collects what an action does, tells it as it happens, and writes the report."""

    def __init__(self, action: Action, node: Node, config: Config, progress: Progress) -> None:
        self.action = action
        self.node = node
        self.config = config
        self.progress = progress
        self.phases: list[Phase] = []
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self._started = datetime.now(UTC)

    @contextmanager
    def phase(self, name: str) -> Iterator[PhaseNotes]:
        """Time a phase. An error of the machine or of a port becomes a failed check of this phase.

        Raises:
            Failed: the phase could not do its work.
        """
        notes = PhaseNotes()
        began = time.perf_counter()
        self.progress.phase_began(name)
        failure: Check | None = None
        done = False
        try:
            yield notes
            done = True
        except Failed as error:
            failure = error.check
            raise
        except AgentOSError as error:
            failure = Check(name=name, part=name, ok=False, detail=error.message)
            raise Failed(failure) from error
        except _MACHINE_ERRORS as error:
            failure = Check(name=name, part=name, ok=False, detail=f"{type(error).__name__}: {error}")
            raise Failed(failure) from error
        finally:
            if failure is not None and not self._knows(failure):
                self.check(failure)
            ms = round((time.perf_counter() - began) * 1_000, 1)
            summary = notes.summary if failure is None else self.scrubbed(failure.detail)
            phase = Phase(
                name=name, ok=done, changed=notes.changed, ms=ms, summary=summary or ("" if done else "interrupted")
            )
            self.phases.append(phase)
            self.progress.phase_ended(phase)

    def check(self, check: Check) -> Check:
        """Record a check, without any secret its texts may have picked up."""
        clean = msgspec.structs.replace(
            check, detail=self.scrubbed(check.detail), log_tail=tuple(self.scrubbed(line) for line in check.log_tail)
        )
        self.checks.append(clean)
        self.progress.checked(clean)
        return clean

    def failure(self, error: Failed) -> Check:
        """The check that ended the action, as recorded."""
        names = (error.check.name, error.check.part)
        return next(check for check in reversed(self.checks) if (check.name, check.part) == names)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.note(text)

    def log_tail(self, service: str) -> tuple[str, ...]:
        return tuple(tail(self.node.log_of(service), LOG_LINES))

    def scrubbed(self, text: str) -> str:
        return report.scrub(text, self._secrets())

    @property
    def ok(self) -> bool:
        return all(phase.ok for phase in self.phases) and all(check.ok or check.skipped for check in self.checks)

    def finish(self, **more: Any) -> tuple[Report, Written]:
        """The report, on disk. `more` are further members of `Report`."""
        failed = [check for check in self.checks if not check.ok and not check.skipped]
        made = Report(
            action=self.action,
            ok=self.ok,
            started_at=self._started,
            finished_at=datetime.now(UTC),
            mode=self.config.mode,
            profile=self.config.profile,
            home=str(self.node.home),
            host=report.host_info(self.node.home),
            versions=report.versions_of(self.node),
            phases=tuple(self.phases),
            checks=tuple(self.checks),
            remediation=tuple(f"{check.part}: {check.next_command}" for check in failed if check.next_command),
            notes=tuple(self.notes),
            **more,
        )
        return made, report.write(made, self.node.reports)

    def _knows(self, failure: Check) -> bool:
        return any((check.name, check.part, check.ok) == (failure.name, failure.part, False) for check in self.checks)

    def _secrets(self) -> list[str]:
        """Every generated secret as it stands now; short-lived, so read again each time."""
        found: list[str] = []
        path = self.node.secret(credentials.DATABASE_PASSWORDS)
        if path.exists():
            found += msgspec.structs.astuple(credentials.database_passwords(self.node))
        tokens = credentials.load_tokens(self.node)
        if tokens is not None:
            found += [key.api_key for key in tokens.keys.values()]
        return found


@contextmanager
def exclusive(node: Node) -> Iterator[None]:
    """Hold the node's lock: one action that changes it at a time. The kernel lets go when we die.

    Raises:
        Conflict: another action holds it; the text says which process.
    """
    node.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(node.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"another agentos command (pid {holder}) is changing the node at {node.home}; wait until it is done"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
