"""Measure docferry beside other programs on loopback: `make bench`; docs/performance.md has the results."""
