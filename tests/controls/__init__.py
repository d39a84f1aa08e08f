"""Each control of the threat model is taken out once, and the tests that its row names are seen to fail.

    python -m tests.controls                       ./agentos test controls
    python -m tests.controls --row S1 --row T4     ./agentos test controls --row S1 --row T4

`catalogue/` says for each row of `docs/threat-model.md` what taking its control out means: a text that occurs once in a
file, and what stands there instead. `tree.py` does so in a copy of the tree, `watch.py` tells what the tests said there.
What is not in here: whether a test proves *all* of its control. A removal proves that this much of it is held.
"""
