"""Policies: what may be asked, answered, offered and called, decided in pure functions."""
