"""What AgentOS needs from outside, and the public contract it speaks.

Each module is the specification of one seam. Nothing here does I/O or knows a vendor: the standard
library and msgspec are the only imports, which a test enforces.
"""
