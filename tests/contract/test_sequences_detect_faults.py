"""Who tests the sequences: they find by themselves what is broken in a queue and in a run store."""

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from adapters.inproc.queue import InprocQueue
from adapters.inproc.run_state import InprocRunState
from conformance.machines.queue import queue_machine
from conformance.machines.run_state import run_state_machine
from tests.contract.broken import queues, run_claims, run_states, run_verbs
from tests.contract.broken.queues import BrokenQueueHarness
from tests.contract.broken.run_states import BrokenRunStateHarness
from tests.support.inproc import closing

FIND: Final = settings(
    max_examples=2_500,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def assert_found(machine: type[RuleBasedStateMachine]) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        run_state_machine_as_test(machine, settings=FIND)


@pytest.mark.parametrize(
    "broken",
    [
        queues.ShowsEveryTenant, queues.ForgetsAcks, queues.DeliversEarly, queues.DeliversWhatIsLeased,
        queues.NeverDeliversAgain, queues.CountsNoAttempts, queues.AcceptsStaleLeases, queues.ExtendsNothing,
        queues.ReleasesNothing, queues.CountsLeasedAsReady,
    ],
)  # fmt: skip
def test_sequences_find_what_is_broken_in_a_queue(broken: type[InprocQueue]) -> None:
    assert_found(queue_machine(lambda: closing(BrokenQueueHarness(broken))))


def test_sequences_find_a_queue_that_loses_messages_at_reopen() -> None:
    assert_found(queue_machine(lambda: closing(BrokenQueueHarness(InprocQueue, forgetful=True))))


@pytest.mark.parametrize(
    "broken",
    [
        run_states.ShowsEveryTenant, run_states.IgnoresIdempotency, run_states.IgnoresFingerprints,
        run_claims.ClaimsWithoutAnEpoch, run_claims.SaysStartedAtEveryClaim, run_claims.ClaimsFromTheLiving,
        run_claims.NeverTakesOver, run_claims.ClearsTheJournalAtTakeover, run_claims.RenewsOnlyOnce,
        run_states.WritesStepByStep, run_states.LeavesGaps, run_states.CancelsHeldRunsAtOnce,
        run_claims.CountsReleasesAsRecoveries, run_claims.KeepsWhatWasReleased, run_verbs.ForksAnEmptyJournal,
        run_verbs.SharesTheWholeJournal, run_verbs.TakesTheStepsAway, run_verbs.DecidesAboutAnything,
    ],
)  # fmt: skip
def test_sequences_find_what_is_broken_in_a_run_state(broken: type[InprocRunState]) -> None:
    assert_found(run_state_machine(lambda: closing(BrokenRunStateHarness(broken, forgetful=False))))
