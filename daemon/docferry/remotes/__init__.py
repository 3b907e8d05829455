"""The outer wall to HTTP: what Codat and Wootiv are to docferry."""
