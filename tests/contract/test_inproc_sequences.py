"""The kit's machines over the in-process Queue and RunState."""

from adapters.inproc import queue
from conformance.machines.queue import queue_machine
from conformance.machines.run_state import run_state_machine
from tests.support.inproc import InprocHarness, InprocRunStateHarness, closing

TestInprocQueueSequences = queue_machine(lambda: closing(InprocHarness(queue.SPEC))).TestCase
TestInprocRunStateSequences = run_state_machine(lambda: closing(InprocRunStateHarness())).TestCase
