"""Stack A's public API: wire formats and endpoints. Nothing below this folder knows HTTP."""
