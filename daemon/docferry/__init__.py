"""docferry carries each document to where it belongs, exactly once, and can prove it."""

__version__ = "0.1.0"
