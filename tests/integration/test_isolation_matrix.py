"""R10 and R11: no row of one tenant's by way of another, at any place of any route, in any role; and two walls see to it.

The record of each proof is printed: `pytest -rP` shows it.
"""

import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.faults.reconcile import Record, record
from tests.integration.test_two_walls import (
    without_predicates,
    without_row_level_security,
    without_the_check_of_batches,
)
from tests.support.isolation.cells import Found, cells, controls, look, state_of
from tests.support.isolation.positions import MAP, Row, unmapped
from tests.support.isolation.world import World, world

NAMES_A_TENANT: Final = ("path:tenant_id", "query:tenant_id", "body:tenant_id")

pytestmark = pytest.mark.anyio


@pytest.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Whether a denial is noted once more depends on what its caller was denied before, and not on whose anything is: what a
    # caller asks of the database is compared as if each was its first.
    monkeypatch.setattr("ports.http.repeats.NOTED_EVERY", timedelta(0))
    async with world(tmp_path) as node:
        yield node


def printed(found: Record) -> Record:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return found


async def test_no_stranger_sees_or_tells_apart_what_is_somebodys_at_any_place_of_any_route(made: World) -> None:
    before = {who: await state_of(made, who) for who in ("acme", "globex")}
    found = Found()

    for cell in cells(made):
        await look(made, cell, found)
    touched = [row for who, rows in before.items() for row in rows - await state_of(made, who)]
    refused = await controls(made)

    proof = printed(
        record(
            "R10",
            {
                "leaks": len(found.leaks) + len(touched),
                "oracle_diffs": len(found.oracles),
                "unmapped": len(unmapped(made.documents)),
                "refused_to_their_owner": len(refused),
            },
            cells=found.cells,
            by_design=found.by_design,
            statuses=", ".join(f"{status}={count}" for status, count in sorted(found.statuses.items())),
            examples=[*found.leaks[:5], *touched[:5], *found.oracles[:5], *unmapped(made.documents)[:5], *refused[:5]],
        )
    )
    assert proof.ok, proof
    assert found.cells > 500


async def test_each_answer_of_administration_names_the_tenant_that_it_is_about(made: World) -> None:
    """Not the one that its caller belongs to."""
    token, owned = made.token("admin", "acme", "platform_admin"), made.owned["acme"]
    named: dict[str, tuple[int, str, str]] = {}
    for key, row in MAP.items():
        if key[0] != "admin" or "/v1/" not in key[2]:
            continue
        answer = await made.send(key, row, token, owned)
        about = next((kind for place, kind in row.ids.items() if place in NAMES_A_TENANT), "tenant")
        about = "newcomer" if "body:id" in row.ids else about
        if (told := answer.json().get("tenant_id")) != owned.values[about]:
            named[" ".join(key)] = (answer.status_code, str(told), owned.values[about])

    assert named == {}


async def strangers_who_saw(made: World, *, oracles: bool = False) -> Found:
    """Only reads: without a wall a change would spoil what the next cell is about."""
    found = Found()
    for cell in cells(made, reads_only=True):
        await look(made, cell, found, oracles=oracles)
    return found


async def test_each_wall_holds_the_matrix_without_the_other_and_without_both_it_falls(made: World) -> None:
    with without_predicates() as stripped:
        by_policy = await strangers_who_saw(made)
    await without_row_level_security(made.database)
    by_predicate = await strangers_who_saw(made)
    with without_predicates(), without_the_check_of_batches():
        unwalled = await strangers_who_saw(made, oracles=True)

    proof = printed(
        record(
            "R11",
            {
                "leaks_without_predicates": len(by_policy.leaks),
                "leaks_without_row_level_security": len(by_predicate.leaks),
                # What the same cells see when there is no wall at all: without it the figures above would prove nothing.
                "blind": int(len(unwalled.leaks) < 50 or len(unwalled.oracles) < 50),
            },
            cells=by_policy.cells,
            predicates_stripped=stripped.predicates,
            leaks_without_both=len(unwalled.leaks),
            oracles_without_both=len(unwalled.oracles),
            examples=[*by_policy.leaks[:5], *by_predicate.leaks[:5]],
        )
    )
    assert proof.ok, proof
    assert stripped.predicates > by_policy.cells / 4


async def test_a_route_and_a_place_that_nobody_has_mapped_are_seen(made: World) -> None:
    known = ("a", "GET", "/v1/runs")
    less = {key: row for key, row in MAP.items() if key != known}

    assert unmapped(made.documents, less) == ["no row: a GET /v1/runs"]
    assert "no place query:agent_id: a GET /v1/runs" in unmapped(made.documents, {**MAP, known: Row()})
    assert unmapped(made.documents, {**MAP, ("a", "GET", "/v1/gone"): Row()}) == ["no route: a GET /v1/gone"]
