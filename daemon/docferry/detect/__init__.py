"""Detect documents: from a file in a mapped folder to a row in the queue."""
