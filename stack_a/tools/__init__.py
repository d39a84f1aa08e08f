"""Which tools a run may call."""
