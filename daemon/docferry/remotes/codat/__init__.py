"""The Codat Files API."""
