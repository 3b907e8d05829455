"""Calls for help: which conditions last, who was told of them, and how each receiver is reached."""
