"""Downloads: from a remote to a folder."""
