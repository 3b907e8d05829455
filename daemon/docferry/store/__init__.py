"""The outer wall to SQLite: the queue and everything docferry remembers."""
