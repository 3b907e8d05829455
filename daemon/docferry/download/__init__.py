"""Download files from a remote into a folder."""
