"""Stack A: accepts agent runs over REST, executes them durably behind six ports, streams their events."""
