"""What the platform does to its tenants: over the admin API (parts of its surface) and from the command line."""
