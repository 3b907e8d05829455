"""How fast docferry is beside its peers, on loopback: `make bench`; docs/performance.md tells what came out."""
