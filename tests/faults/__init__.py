"""Real services under load, killed, stopped and cut off, then reconciled: what was promised against what is there.

    python -m tests.faults --minutes 5 --seed 7          ./agentos test faults --minutes 5
    python -m tests.faults --points 200                  ./agentos test faults --points 200
    python -m tests.faults.redeploys --times 20
    python -m tests.faults.bleed --rounds 10000

The driver keeps its own ledger of every promise it was given, and believes no service about what became of it. Each
invariant is one JSON record, and the run fails on its bold value.
"""
