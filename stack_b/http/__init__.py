"""The endpoints of the gateway and what is said on the wire."""
