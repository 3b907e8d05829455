"""What others watch docferry with: the metrics endpoint, the textfile and the status page. Imported only when asked."""
