"""What every RunState adapter must show. Clauses: `ports.run_state`. The tests are in the modules named below."""

from conformance.run_state_access import RunStateIsolation, RunStateListing, RunStateOrphans
from conformance.run_state_admission import RunStateAdmission
from conformance.run_state_appends import RunStateAppends, RunStateCancellation
from conformance.run_state_bodies import RunStateBodies
from conformance.run_state_children import RunStateAdrift, RunStateLines, RunStateWaiting
from conformance.run_state_claims import RunStateClaims, RunStateCreation
from conformance.run_state_priority import RunStateAwaited, RunStatePriority
from conformance.run_state_verbs import RunStateDecisions, RunStateForks
from conformance.run_state_writes import RunStateWrites


class RunStateContract(
    RunStateCreation,
    RunStateClaims,
    RunStateAppends,
    RunStateWrites,
    RunStateBodies,
    RunStateCancellation,
    RunStateIsolation,
    RunStateListing,
    RunStateOrphans,
    RunStateForks,
    RunStateDecisions,
    RunStateAdmission,
    RunStateLines,
    RunStateWaiting,
    RunStateAdrift,
    RunStatePriority,
    RunStateAwaited,
):
    """All of it; the parts are split by subject only."""
