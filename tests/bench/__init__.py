"""What the engine and the gateway cost, always beside a reference measured in the same run. Not part of the tests.

`python -m tests.bench` lists them. Each takes `--json FILE` for a record with its conditions, and `--smoke` for a few
seconds that prove it still works.
"""
