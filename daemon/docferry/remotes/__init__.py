"""Access the remotes over HTTP: clients of Codat and Wootiv, and their limits."""
