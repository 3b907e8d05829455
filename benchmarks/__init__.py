"""How fast docferry is beside its peers, measured on loopback: `make bench`, and docs/performance.md for what came out."""
