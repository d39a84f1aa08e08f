"""The constants of the worker's lease, and what they promise together."""

from datetime import timedelta
from typing import Final

from adapters.postgres.engine import CALL_SECONDS
from stack_a.lease import FENCE_AFTER, LEASE, RENEW_EVERY
from stack_a.worker import SWEEP_EVERY, SWEEP_JITTER

TAKEN_OVER_WITHIN: Final = timedelta(seconds=30)
CALL: Final = timedelta(seconds=CALL_SECONDS)


def test_a_worker_that_cannot_renew_has_stopped_its_runs_before_its_lease_ends() -> None:
    # The last look before it is due fails just too early; the next one comes after a pause and a call that is not answered.
    stopped_after = FENCE_AFTER + RENEW_EVERY + CALL

    assert stopped_after < LEASE


def test_several_renewals_in_a_row_may_go_unanswered() -> None:
    assert 2 * (RENEW_EVERY + CALL) < FENCE_AFTER


def test_a_dead_workers_runs_are_taken_over_within_the_promised_time() -> None:
    # Its last renewal may be as old as nothing, and the sweep before the lease's end as young.
    due_after = LEASE + max(SWEEP_JITTER) * SWEEP_EVERY

    room = TAKEN_OVER_WITHIN - due_after

    assert room >= timedelta(seconds=2)
