"""Hard token budgets: what a request may cost, and settling it exactly once."""
