"""Access the disk: watch, scan, read and publish files."""
