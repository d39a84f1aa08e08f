"""Implementations of the ports. Each family is independent of the others; only a chosen one is imported."""
