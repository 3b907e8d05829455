"""What speaks to people."""
