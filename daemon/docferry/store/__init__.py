"""Store the queue in a database: every SQL statement of docferry and the rules for running them."""
