"""One cell of the matrix: a stranger names what is somebody else's, and then what is nobody's, in the same place.

It leaks when an answer, or a change, shows anything of the owner's. It is an oracle when the two answers differ in a byte
that is not the name itself, or when the node asked its database for something else, which takes another time.
"""

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import httpx
import pytest
from msgspec import Struct

from ports.http.routes import LOOPBACK, PUBLIC
from ports.ids import uuid_of
from tests.support.isolation.positions import EVERYWHERE, FREE, MAP, OF_THE_TENANT, REPLAYED, Json, Key, Row, tried
from tests.support.isolation.world import ALL_ROLES, World
from tests.support.postgres import connected

PAIRS: Final = (("acme", "globex"), ("acme", "lab"), ("globex", "acme"))
"""Owners and strangers: another tenant, another namespace, and the other way around."""
ATTEMPTS: Final = 4
"""Work of the node's own may fall between two requests and look like a difference; one that is there stays."""
_MINTED: Final = re.compile(r"(?:[a-z]{3}_|[a-z]+-|^)[0-9a-f]{24,32}|[A-Za-z]+[_-][A-Za-z0-9]{20,}")
_CACHED: Final = re.compile(r"budget|What windows|usage_events|request_records|gateway_configurations|FROM tenants t\b")
"""Statements about what is remembered for a while, and booked by the way: when they come says nothing of a request."""
_SECRET: Final = re.compile(r"^aos_.*_[0-9a-f]{64}$")
"""A new key, of which each answer has its own; a whole text, so that it hides nothing else."""
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)")
_OTHER_BODY: Final = "x-other-body"


class Cell(Struct, frozen=True, kw_only=True):
    key: Key
    row: Row
    place: str
    kind: str
    owner: str
    stranger: str
    role: str
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{' '.join(self.key)} {self.place}{self.variant}: {self.stranger} ({self.role}) at {self.owner}'s"


@dataclass
class Found:
    cells: int = 0
    leaks: list[str] = field(default_factory=list)
    oracles: list[str] = field(default_factory=list)
    by_design: int = 0
    """Of platform administrators, on what is theirs."""
    statuses: Counter[int] = field(default_factory=Counter)


@dataclass
class Trace:
    statements: list[str] = field(default_factory=list)


@contextmanager
def traced() -> Iterator[Trace]:
    """What is asked of the database meanwhile."""
    trace = Trace()
    as_written = asyncpg.Connection.fetch

    async def noted(self: Any, query: str, *arguments: Any, **options: Any) -> Any:  # the driver's own signature
        if _CACHED.search(query) is None:
            trace.statements.append(query)
        return await as_written(self, query, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncpg.Connection, "fetch", noted)
        yield trace


def cells(made: World, *, reads_only: bool = False) -> Iterator[Cell]:
    for key, row in MAP.items():
        surface, method, template = key
        access = made.documents[surface]["paths"][template][method.lower()]["x-agentos-access"]
        if reads_only and method != "GET":
            continue
        for place, kind in tried(row, public=access in {PUBLIC, LOOPBACK}).items():
            for owner, stranger in PAIRS:
                if stranger == "lab" and (row.tenant_wide or kind in OF_THE_TENANT):
                    continue
                variants = ("", _OTHER_BODY) if place in REPLAYED else ("",)
                for role in ALL_ROLES:
                    for variant in variants:
                        yield Cell(
                            key=key, row=row, place=place, kind=kind, owner=owner, stranger=stranger, role=role,
                            variant=variant,
                        )  # fmt: skip


async def look(made: World, cell: Cell, found: Found, *, oracles: bool = True) -> None:
    """Try one cell."""
    found.cells += 1
    if cell.role == "platform_admin" and _is_theirs(cell):
        found.by_design += 1
        return
    for attempt in range(ATTEMPTS):
        # Its key is used up after the first time. The first of all has the same name as the owner.
        principal = None if (attempt, cell.role) == (0, "service") else f"usr_{cell.role}_{attempt}"
        token = made.token(cell.key[0], cell.stranger, cell.role, principal=principal)
        await made.known(cell.key[0], token)
        theirs, first = await _ask(made, cell, token, absent=False)
        nobodys, second = await _ask(made, cell, token, absent=True)
        if attempt == 0:
            found.statuses[theirs.status_code] += 1
            if shown := _shown(made, cell, theirs):
                found.leaks.append(f"{cell.name}: {theirs.status_code} shows {shown}")
        difference = "" if cell.kind in FREE else _difference(theirs, nobodys, first, second)
        if not difference or not oracles:
            return
    found.oracles.append(f"{cell.name}: {difference}")


def _is_theirs(cell: Cell) -> bool:
    """Whether a platform administrator may name another tenant there. Whom they act for is no such place."""
    return cell.place in cell.row.above or (cell.row.platform and cell.place not in EVERYWHERE)


async def _ask(made: World, cell: Cell, token: str, *, absent: bool) -> tuple[httpx.Response, tuple[str, list[str]]]:
    """The answer; the name that was sent, and what was asked of the database."""
    owner, stranger = made.owned[cell.owner], made.spare[cell.stranger]
    if cell.place in REPLAYED:
        # The owner's whole request, under its key; or another one under the same.
        whose = made.spent[cell.owner] if not cell.variant else stranger
        value = f"key-{uuid.uuid4().hex}" if absent or cell.row.platform else await made.use_key(*_using(cell))
    else:
        whose = stranger
        value = made.cursors[cell.key, cell.owner] if cell.kind == "cursor" else owner.values[cell.kind]
        if absent and cell.kind not in FREE:
            value = absent_of(cell.kind, value)
    with traced() as trace:
        answer = await made.send(cell.key, cell.row, token, whose, given={cell.place: value})
    return answer, (value, trace.statements)


def _using(cell: Cell) -> tuple[Key, Row, str, str]:
    return cell.key, cell.row, cell.place, cell.owner


def absent_of(kind: str, value: str) -> str:
    """A name of the same form and length that nobody has."""
    if kind == "version":
        return "999"
    if kind == "version_tag":
        return '"9"'
    if kind.startswith("run"):
        return "run_" + "0" * 32
    if kind == "own_key":
        return "key_" + "0" * 32
    beginning = value[:4] if kind in {"agent", "tenant", "subject"} else value[:2]
    return beginning + "z" * (len(value) - len(beginning))


def _shown(made: World, cell: Cell, answer: httpx.Response) -> list[str]:
    """What of the owner's an answer shows that the stranger had not sent itself."""
    sent = answer.request.content.decode() + str(answer.request.url) + str(answer.request.headers)
    whole = answer.text + str(answer.headers)
    owned = [
        one
        for kept in (made.owned, made.spent, made.spare)
        for one in (kept[cell.owner].secret, *kept[cell.owner].hidden)
    ]
    return sorted({one for one in owned if one in whole and one not in sent})


def _difference(
    theirs: httpx.Response, nobodys: httpx.Response, first: tuple[str, list[str]], second: tuple[str, list[str]]
) -> str:
    if theirs.status_code != nobodys.status_code:
        return f"{theirs.status_code} {theirs.text[:200]} / {nobodys.status_code} {nobodys.text[:200]}"
    if (one := _head(theirs)) != (other := _head(nobodys)):
        return f"{one} / {other}"
    if (here := _body(theirs, first[0])) != (there := _body(nobodys, second[0])):
        return f"{here!r} / {there!r}"
    if first[1] != second[1]:
        return f"asked the database for {_names(first[1])} / {_names(second[1])}"
    return ""


def _names(statements: list[str]) -> list[str]:
    return [one.removeprefix("-- ")[:40] for one in statements]


def _head(answer: httpx.Response) -> list[tuple[str, str]]:
    """All headers; of the trace's only the span differs by right, of an accepted request also its length and the budget."""
    if answer.status_code >= 300:
        return [(name, value) for name, value in answer.headers.multi_items() if name != "traceparent"]
    new_each_time = {"traceparent", "content-length", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"}
    return [(name, "" if name in new_each_time else value) for name, value in answer.headers.multi_items()]


def _body(answer: httpx.Response, sent: str) -> Json:
    """Of a refusal every byte but the name; of an answer everything but what is new each time."""
    if answer.status_code >= 300:
        return answer.content.replace(sent.encode(), b"<sent>")
    try:
        return _masked(json.loads(answer.content.replace(sent.encode(), b"<sent>")))
    except ValueError:
        return "text"


def _masked(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {name: _masked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one) for one in value]
    if isinstance(value, str):
        return _TIME.sub("<time>", _MINTED.sub("<id>", _SECRET.sub("<secret>", value)))
    return "<number>" if isinstance(value, int | float) and not isinstance(value, bool) else value


async def state_of(made: World, who: str) -> Counter[str]:
    """Every row that names something that somebody owns, as text."""
    rows: Counter[str] = Counter()
    async with connected(made.database.superuser) as connection:
        tables = await connection.fetch(
            "SELECT table_name FROM information_schema.columns "
            "JOIN information_schema.tables USING (table_schema, table_name) "
            "WHERE table_schema = 'agentos' AND column_name = 'tenant_id' AND table_type = 'BASE TABLE'"
        )
        for [table] in tables:
            for row in await connection.fetch(
                f"SELECT to_jsonb(t)::text FROM {table} t WHERE tenant_id = ANY($1::text[])",
                [made.owned[who].values[kind] for kind in ("tenant", "subject")],
            ):
                rows[f"{table}: {row[0]}"] += 1
    mine = [str(uuid_of("run", one) or one) for one in made.owned[who].hidden]
    return Counter({row: count for row, count in rows.items() if any(one in row for one in mine)})


async def controls(made: World) -> list[str]:
    """Requests that their owner makes, and that are refused: cells that would have proved nothing."""
    found = []
    for key, row in MAP.items():
        for owner in ("acme", "globex"):
            token = made.token(key[0], owner, "platform_admin")
            answer = await made.send(key, row, token, made.owned[owner])
            if answer.status_code >= 300:
                found.append(f"{' '.join(key)}: {owner} got {answer.status_code} {answer.text[:200]}")
    return found
