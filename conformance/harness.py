"""What the author of an adapter supplies: one Protocol per port.

A harness stands for one storage, empty at first and shared with no other test. Time moves only by `advance`: over a
clock of the kit it costs nothing, over a database it shifts what the database takes for now, and where neither is
possible it really waits. Contracts therefore never look at the machine's clock.

The tenants and namespaces the contracts use are in `conformance.people`; a storage that wants them to exist beforehand
creates `people.TENANTS` in `open`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from msgspec import Struct

from ports.administration import Administration
from ports.agent import AgentRegistry
from ports.audit import AuditLog
from ports.auth import TokenIssuer, TokenVerifier
from ports.budget import BudgetLedger
from ports.clock import Clock
from ports.context import AuthContext
from ports.egress import EgressPort
from ports.event import EventPort
from ports.gateway_configuration import GatewayConfigurations
from ports.ids import RunId, TenantId
from ports.maintenance import MaintenancePort
from ports.memory import MemoryPort
from ports.messages import Json
from ports.model import ChatRequest, ModelPort
from ports.pii import PiiDetector
from ports.privacy import PrivacyPort
from ports.provider import Endpoint, ProviderPort
from ports.queue import QueuePort
from ports.reply_journal import ReplyJournal
from ports.request_log import RequestLog
from ports.run_state import Change, Run, RunStatePort
from ports.secrets import SecretsPort
from ports.tenant import Entitlements, TenantDirectory
from ports.tool import ToolCall, ToolPort

PortT_co = TypeVar("PortT_co", covariant=True)


class Harness(Protocol[PortT_co]):
    async def open(self) -> PortT_co:
        """The port over this harness' storage. Called once per test, before anything else."""
        ...


class StorageHarness(Harness[PortT_co], Protocol[PortT_co]):
    async def reopen(self) -> PortT_co:
        """Another port over the same storage, as a new process would open it; the first one stays usable."""
        ...

    async def advance(self, delta: timedelta) -> None:
        """Let `delta` pass, for the storage and for whoever waits in the port."""
        ...

    async def now(self) -> datetime:
        """The storage's own time."""
        ...


class EntitlingHarness(StorageHarness[PortT_co], Protocol[PortT_co]):
    async def entitle(self, tenant: TenantId, entitlements: Entitlements) -> None:
        """Back door: from now on the tenant has these, as if its directory said so."""
        ...


class QueueHarness(EntitlingHarness[QueuePort], Protocol):
    @property
    def declared(self) -> Struct:
        """What the adapter's spec computed from the configuration: `SPEC.capabilities(config)`."""
        ...


class RunStateHarness(EntitlingHarness[RunStatePort], Protocol):
    @property
    def declared(self) -> Struct: ...

    async def event_types(self, auth: AuthContext, run_id: RunId) -> Sequence[tuple[int, str]]:
        """Back door: sequence and type of everything in the run's log, read without the port under test."""
        ...

    async def event_data(self, auth: AuthContext, run_id: RunId, sequence: int) -> Json:
        """Back door: `data` of one event of the run's log."""
        ...

    async def memory(self) -> MemoryPort:
        """A port over the same storage. Asked for only where `declared.transactional`."""
        ...


class EventHarness(StorageHarness[EventPort], Protocol):
    @property
    def declared(self) -> Struct: ...

    async def start_run(self, auth: AuthContext) -> Run:
        """Back door: a new run of `auth`, claimed, so that its log holds `run.created` and `run.started`."""
        ...

    async def append(self, auth: AuthContext, run: Run, change: Change) -> None:
        """Back door: `RunStatePort.append` under the epoch `run` was claimed with, over the same storage."""
        ...

    async def elsewhere(self) -> EventPort:
        """A port over another storage."""
        ...


class MaintenanceHarness(StorageHarness[MaintenancePort], Protocol):
    """`advance` moves the time of the other ports as well."""

    async def runs(self) -> RunStatePort:
        """A port over the same storage."""
        ...

    async def events(self) -> EventPort:
        """A port over the same storage."""
        ...

    async def requests(self) -> RequestLog:
        """A port over the same storage."""
        ...

    async def replies(self) -> ReplyJournal:
        """A port over the same storage."""
        ...

    async def leftovers(self) -> Sequence[int]:
        """Back door: how many records of requests, sealed texts and replies there are in the storage."""
        ...


class PrivacyHarness(StorageHarness[PrivacyPort], Protocol):
    """`advance` moves the time of the other ports as well."""

    async def runs(self) -> RunStatePort:
        """A port over the same storage."""
        ...

    async def requests(self) -> RequestLog:
        """A port over the same storage."""
        ...

    async def ledger(self) -> BudgetLedger:
        """A port over the same storage."""
        ...

    async def tenants(self) -> TenantDirectory:
        """A port over the same storage."""
        ...

    async def maintenance(self) -> MaintenancePort:
        """A port over the same storage."""
        ...

    async def memory(self) -> MemoryPort:
        """A port over the same storage."""
        ...

    async def replies(self) -> ReplyJournal:
        """A port over the same storage."""
        ...

    async def audit_log(self) -> AuditLog:
        """A port over the same storage."""
        ...

    async def administration(self) -> Administration:
        """A port over the same storage."""
        ...


class MemoryHarness(StorageHarness[MemoryPort], Protocol):
    @property
    def declared(self) -> Struct: ...


class BudgetHarness(StorageHarness[BudgetLedger], Protocol): ...


class AuditHarness(StorageHarness[AuditLog], Protocol): ...


class GatewayConfigurationHarness(StorageHarness[GatewayConfigurations], Protocol): ...


class ReplyJournalHarness(StorageHarness[ReplyJournal], Protocol): ...


class RequestLogHarness(StorageHarness[RequestLog], Protocol):
    async def audit(self, auth: AuthContext) -> Sequence[tuple[str, str]]:
        """Back door: action and subject of what the tenant's audit has, oldest first."""
        ...


class AgentHarness(StorageHarness[AgentRegistry], Protocol): ...


class TenantHarness(StorageHarness[TenantDirectory], Protocol): ...


class AdministrationHarness(StorageHarness[Administration], Protocol):
    async def directory(self) -> TenantDirectory:
        """A port over the same storage."""
        ...

    async def runs(self) -> RunStatePort:
        """A port over the same storage."""
        ...

    async def event_types(self, auth: AuthContext, run_id: RunId) -> Sequence[tuple[int, str]]:
        """Back door, as in `RunStateHarness`."""
        ...

    async def event_data(self, auth: AuthContext, run_id: RunId, sequence: int) -> Json: ...


class ToolSamples(Struct, frozen=True, kw_only=True):
    """Calls of the adapter's own tools. One left out means: no tool of this adapter can show it."""

    good: ToolCall
    bad_arguments: ToolCall
    """Of a known tool, with arguments its schema refuses."""
    slow: ToolCall | None = None
    """Does not end by itself within an hour of the harness' time."""
    oversized: ToolCall | None = None
    """Has an output larger than the tool's `max_output_bytes`."""
    repeatable: ToolCall | None = None
    """Of a `pure` or `idempotent` tool with an effect that `ToolHarness.effects` counts."""
    transactional: ToolCall | None = None
    """Of a `transactional` tool. `ToolHarness.effects` would count what it did."""
    write: ToolCall | None = None
    read: ToolCall | None = None
    """`read` gives another output once the same tenant's `write` was called."""
    reconcilable: ToolCall | None = None
    """Of a tool that can tell what became of an interrupted call."""
    unreachable: ToolCall | None = None
    """Can't begin: there is no connection, or no process."""
    lost: ToolCall | None = None
    """Acts, as `ToolHarness.effects` counts, and its answer is lost: the connection breaks, or the process dies."""


class ToolHarness(Harness[ToolPort], Protocol):
    @property
    def declared(self) -> Struct: ...

    @property
    def samples(self) -> ToolSamples: ...

    async def advance(self, delta: timedelta) -> None: ...

    async def effects(self) -> int:
        """Back door: how often a tool of the samples has acted so far."""
        ...

    async def running(self) -> int:
        """Back door: how many calls are at work at this moment."""
        ...


class ModelHarness(Harness[ModelPort], Protocol):
    @property
    def declared(self) -> Struct: ...

    @property
    def chat_model(self) -> str: ...

    @property
    def embed_model(self) -> str: ...

    @property
    def foreign_model(self) -> str | None:
        """A model that is served, but not to ACME; None where every model is free to all."""
        ...

    @property
    def blocked(self) -> ChatRequest | None:
        """A request that policy blocks; None where no policy is in force."""
        ...

    async def backend_calls(self) -> int:
        """Back door: how many chat calls have reached the backend."""
        ...

    async def break_backend(self) -> None:
        """From now on the backend does not answer."""
        ...

    async def hold_backend(self) -> None:
        """From now on chat calls wait in the backend."""
        ...

    async def release_backend(self) -> None:
        """Those that wait go on, and no further one waits."""
        ...

    async def backend_waiting(self) -> int:
        """Back door: how many chat calls wait in the backend at this moment."""
        ...


class AuthHarness(Harness[TokenVerifier], Protocol):
    """The verifier under test is for one audience; `subject` is an active tenant's principal."""

    @property
    def subject(self) -> AuthContext:
        """Tenant, principal, scopes and namespace of the good tokens. At least two scopes."""
        ...

    async def good_tokens(self) -> Mapping[str, str]:
        """A fresh valid token of `subject` of every form the verifier takes, by the form's name."""
        ...

    async def bad_tokens(self) -> Mapping[str, str]:
        """Tokens that must be refused, by what is wrong with them; the names of `auth.DEFECTS` at least."""
        ...

    async def tokens_claiming(self, scopes: frozenset[str]) -> Mapping[str, str]:
        """Well-signed tokens of `subject` that claim `scopes`, whatever these are."""
        ...

    async def advance(self, delta: timedelta) -> None: ...

    async def disable_tenant(self, tenant: TenantId) -> None: ...

    async def break_storage(self) -> None:
        """From now on whatever the verifier asks is unavailable."""
        ...

    async def issuer(self) -> TokenIssuer:
        """The issuer whose tokens the verifier takes."""
        ...

    @property
    def audience(self) -> str: ...

    async def acting_token(self) -> tuple[str, TenantId]:
        """A token of `subject` with its scopes, `tenant:act_as` and `admin:platform`, and an active tenant that it may act
        for."""
        ...

    async def end_acting(self, tenant: TenantId) -> None:
        """From now on `subject` may not act for it."""
        ...


class PiiHarness(Harness[PiiDetector], Protocol):
    @property
    def declared(self) -> Struct: ...


class EgressHarness(Harness[EgressPort], Protocol):
    """Everything is said before `open`. Unless it is said otherwise names resolve to 127.0.0.1, and nothing is lifted."""

    def resolves(self, *addresses: str, then: tuple[str, ...] = ()) -> None:
        """What every name leads to; and `then`, from the second question for it on."""
        ...

    def lift(self, host: str, port: int) -> None:
        """The operator allows this host and port although the address is not public."""
        ...

    def entitle(self, tenant: TenantId, *hosts: str) -> None:
        """Tenants of `conformance.people` may go everywhere, unless it is said otherwise."""
        ...

    def asked(self) -> list[str]:
        """Names that were resolved."""
        ...

    def reached(self) -> list[str]:
        """Addresses that a connection was tried to."""
        ...


class SecretsHarness(Harness[SecretsPort], Protocol):
    @property
    def declared(self) -> Struct: ...

    async def put(self, name: str, value: str, **fields: str) -> None:
        """A new version of the secret. `fields` are given where the adapter declares fields."""
        ...

    async def remove(self, name: str) -> None: ...

    async def go_away(self) -> None:
        """From now on the store can't be asked."""
        ...

    async def advance(self, delta: timedelta) -> None: ...


class ProviderHarness(Harness[ProviderPort], Protocol):
    """A provider that the test tells what to do next; it says `provider.WORDS` with every refusal.

    For a port over a network that is a server on loopback which speaks as the provider does.
    """

    @property
    def endpoint(self) -> Endpoint:
        """Its key is `provider.SECRET`; it waits for half a second at most."""
        ...

    @property
    def model(self) -> str: ...

    @property
    def embed_model(self) -> str | None:
        """None where the provider embeds nothing."""
        ...

    def will_answer(
        self,
        text: str,
        calls: Sequence[tuple[str, str, str]] = (),
        *,
        prompt: int = 1,
        completion: int = 1,
        cache_read: int = 0,
        cache_write: int = 0,
    ) -> None:
        """`calls` of tools: id, name, arguments. `prompt` is all of it. Whole or as a stream of several pieces."""
        ...

    def will_embed(self, *vectors: tuple[float, ...]) -> None: ...

    def will_refuse(self, status: int, *, retry_after: str | None = None, too_long: bool = False) -> None: ...

    def will_break_off(self, text: str) -> None:
        """A stream that says a part of `text`, and ends as if there were no more to say."""
        ...

    def will_hold(self, text: str) -> None:
        """A stream says a part of `text`, a whole answer nothing; then it waits until its caller has gone."""
        ...

    def will_be_silent(self) -> None: ...

    async def leave(self) -> None:
        """From now on it can't be reached."""
        ...

    def kept(self, cache_write: int) -> int | None:
        """What of tokens written to a cache the provider reports: these, or None where it has no word for them."""
        ...

    async def calls(self) -> int:
        """Back door: how many requests have reached it."""
        ...

    async def held(self) -> None:
        """Until a call waits."""
        ...

    async def gone(self) -> None:
        """Until the caller of a call that waits is seen to have gone."""
        ...


class ClockHarness(Harness[Clock], Protocol):
    async def advance(self, delta: timedelta) -> None: ...
