"""The client of the Codat Files API."""
