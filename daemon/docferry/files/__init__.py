"""The outer wall to the disk: watching, scanning, reading and landing files."""
