"""Runs between nodes. Nothing here yet: a forwarded run will enter through `ports.run_intake`."""
