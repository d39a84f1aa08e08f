"""Every port inside this process: the reference for what the clauses mean, for development and tests."""
