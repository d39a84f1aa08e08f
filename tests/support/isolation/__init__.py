"""Every place of every route that may name something of somebody's, and what becomes of a stranger's name in it."""
