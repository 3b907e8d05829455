"""Keep the transparency log of receipts: Merkle tree, signed heads, canonical JSON, exports. No I/O except files."""
