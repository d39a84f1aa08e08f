"""ToolPort over a handful of tools that need no set-up: arithmetic, time, text, memory, and a guarded HTTP GET.

`port.py` checks arguments, time and size once for all of them; a tool only acts. Nothing in this family opens a connection:
`http_get` goes through the egress port.
"""
