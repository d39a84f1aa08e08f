"""Sequences: Hypothesis drives a port and a plain model of it side by side.

A machine is asked for with a way to open a harness, and is run by pytest as a test case:

    TestRedisQueueSequences = queue_machine(open_harness).TestCase

`open_harness` gives an async context manager around a harness over a new, empty storage. Rules are synchronous;
`asyncio.Runner` bridges them to one event loop per sequence.
"""
