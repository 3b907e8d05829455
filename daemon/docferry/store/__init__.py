"""The queue's database: every SQL statement of docferry and the rules for running them."""
