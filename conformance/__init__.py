"""The kit that says whether an adapter may be trusted: a test for every clause of the ports. Start with README.md."""
