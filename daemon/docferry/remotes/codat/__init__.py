"""Access the Codat Files API."""
