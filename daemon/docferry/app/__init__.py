"""Builds the house and runs it: `ferry` is the daemon, `onepass` one pass over the same rooms."""
