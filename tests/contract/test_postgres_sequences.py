"""The kit's machines over PostgreSQL: fewer sequences than in process, since each has a database of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hypothesis import settings

from adapters.postgres import queue
from conformance.machines.driving import SETTINGS
from conformance.machines.queue import queue_machine
from conformance.machines.run_state import run_state_machine
from ports.queue import QueuePort
from tests.support.postgres import borrow
from tests.support.postgres_harness import PostgresHarness, PostgresRunStateHarness, closing

FEW: Final = settings(SETTINGS, max_examples=10)


@asynccontextmanager
async def queue_harness() -> AsyncIterator[PostgresHarness[QueuePort]]:
    async with closing(PostgresHarness(queue.SPEC, await borrow())) as harness:
        yield harness


@asynccontextmanager
async def run_state_harness() -> AsyncIterator[PostgresRunStateHarness]:
    async with closing(PostgresRunStateHarness(await borrow())) as harness:
        yield harness


TestPostgresQueueSequences = queue_machine(queue_harness, FEW).TestCase
TestPostgresRunStateSequences = run_state_machine(run_state_harness, FEW).TestCase
