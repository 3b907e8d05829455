"""Serve monitoring: the metrics endpoint, the textfile and the status page. Imported only if configured."""
