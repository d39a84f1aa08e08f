"""Adapters broken on purpose, each in one way, under the kit.

pytest does not collect these modules by itself: `test_kit_detects_faults` runs them and compares what failed with
`caught_by`, the tests that must fail, no more and no fewer.
"""
