"""Which backend serves a request: names, choice, breakers, canaries, and the router that puts them together."""
