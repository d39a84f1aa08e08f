"""One module per dialect that clients speak: from its wire to the canonical call, and from the answer back to its wire.

A surface translates and decides nothing: rules are in the pipeline, which every surface goes through.
"""
